"""Leave-one-out of segments: one run of the untraced model on the ids that are left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from tiny_models import tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12, 5, 30, 14], [17, 8, 40]
SEGMENTS = [[0, 1], [2, 3], [4, 5, 6]]
SPAN = {"steps": [(0, 3)], "segments": SEGMENTS, "sides": ("source",), "target": "logprob"}


@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_a_segment_is_what_the_answer_loses_without_its_ids(family):
    hf = tiny_model(family)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="loo_segments", **SPAN)

    def logprob(ids):
        if hf.config.is_encoder_decoder:
            start = hf.config.decoder_start_token_id
            given = {"input_ids": [ids], "decoder_input_ids": [[start, *CONTINUATION[:-1]]]}
        else:
            given = {"input_ids": [[*ids, *CONTINUATION[:-1]]]}
        with torch.no_grad():
            logits = hf(**{name: torch.tensor(value) for name, value in given.items()}).logits[0, -3:].double()
        return float(logits.log_softmax(-1)[torch.arange(3), CONTINUATION].sum())

    for number, group in enumerate([*SEGMENTS, [7]]):
        rest = [token for k, token in enumerate(PROMPT) if k not in group]
        assert out.scores.values[0, number] == pytest.approx(logprob(PROMPT) - logprob(rest), rel=1e-4, abs=1e-5)
    assert np.isnan(out.scores.values[0, 4:]).all()
    assert out.verified


def test_it_is_occlusion_with_other_defaults():
    model = whence.load(tiny_model("llama"))
    for removal in ("delete", "replace", "knockout"):
        one, other = (
            model.attribute(PROMPT, CONTINUATION, method=method, removal=removal, **SPAN).scores.values
            for method in ("loo_segments", "occlusion")
        )
        np.testing.assert_array_equal(one, other)
    assert whence.LooSegments().removal == "delete"
    assert whence.LooSegments.defaults == whence.ContextCite.defaults


def test_a_way_of_removing_that_does_not_exist_is_refused():
    with pytest.raises(whence.UnknownNameError, match="unknown way of removing a feature 'erase'"):
        whence.LooSegments(removal="erase")
