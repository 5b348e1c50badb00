"""The tokens of a batch, and the tokens that could stand in their places, as plain data for methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whence.core.contract import Vocabulary
from whence.models.model import Model
from whence.probe.batch import Batch
from whence.text.encoded import special_names
from whence.text.lexical_classes import LexicalClasses, lexical_classes

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor


def vocabulary(model: Model, batch: Batch, feature: Int[Tensor, "example token"]) -> Vocabulary:
    """What a method may know of the tokens.

    Args:
        model: The model.
        batch: The sequences.
        feature: The feature of each place that may change, else -1.

    Returns:
        The tokens of the batch, and the lexical class of every id that all stacks of the model can read.
    """
    import torch

    parts = [batch.inputs[name] for name in ("input_ids", "decoder_input_ids") if name in batch.inputs]
    found = known_classes(model)
    return Vocabulary(
        ids=torch.cat(parts, dim=1),
        present=batch.mask([[True] * len(one.tokens) for one in batch.sequences]),
        feature=feature,
        classes=torch.tensor(found.of),
        names=found.names,
        texts=found.texts,
        starts=found.starts,
    )


def known_classes(model: Model) -> LexicalClasses:
    """The lexical class of every id; without a tokenizer they are all of one."""
    paths = model.architecture.paths["embed"].values()
    count = min(int(model.nn._module.get_submodule(path).weight.shape[0]) for path in paths)
    special = special_ids(model)
    if model.tokenizer is None:
        return LexicalClasses(("token",), tuple(-1 if k in special else 0 for k in range(count)), (), ())
    named = min(count, len(model.tokenizer))
    tokens = model.tokenizer.convert_ids_to_tokens(list(range(named)))
    return lexical_classes([*tokens, *[None] * (count - named)], special)


def special_ids(model: Model) -> frozenset[int]:
    """The ids that the tokenizer, or the checkpoint, gives a task of their own."""
    found = set(special_names(model.tokenizer))
    for config in (model.config, model.generation_config):
        for name in ("pad", "bos", "eos", "decoder_start", "forced_bos", "forced_eos"):
            value = getattr(config, f"{name}_token_id", None)
            found |= set(value) if isinstance(value, Sequence) else {value}
    return frozenset(one for one in found if one is not None)
