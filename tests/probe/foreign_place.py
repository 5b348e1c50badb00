"""Run as a script: a place that has never heard of whence receives programs and runs them on its own model.

Arguments: a folder with a checkpoint, a file of pickled blobs, and where to save what the programs return.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

HIDDEN = ("whence", "jaxtyping")


class Absent:
    """Makes the hidden packages impossible to import."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"{name} is not here")


def main(folder: str, blobs: str, out: str) -> None:
    sys.meta_path.insert(0, Absent())
    import nnsight
    import torch
    from nnsight.intervention.serialization import loads
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.set_num_threads(1)
    auto = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    model = nnsight.NNsight(auto.from_pretrained(folder, attn_implementation="eager").eval())
    results = []
    for blob in pickle.loads(Path(blobs).read_bytes()):
        program, data = loads(blob)
        with model.session():
            result = nnsight.save(program(model, **data))
        results.append(result)
    assert not any(name.partition(".")[0] in HIDDEN for name in sys.modules)
    torch.save(results, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
