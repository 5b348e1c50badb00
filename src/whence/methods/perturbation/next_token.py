"""Tokens drawn from the model's own next-token distributions, where the model is.

`draw_next` travels to where the model runs, by its source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def draw_next(model: Any, state: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> None:
    """A fold of the logits: for every place with a token before it, ids from what the model expects there.

    Ids are found by inverting the distribution function at given numbers, so they depend on nothing else.

    Args:
        model: The nnsight model.
        state: ``run``; ``data`` with ``uniform`` [draw, token] (numbers in [0, 1), for the tokens of an example in
            order), ``allowed`` [id], ``same`` (whether a token may be drawn in its own place) and ``likeliest``
            (take the most probable id instead); and ``found``, which gets ``ids`` [example, draw, position] of
            the last stream, -1 at places without a token before them.
        stage: The stage.
        values: ``logits``.
    """
    data, inputs = state["data"], state["run"]["inputs"]
    logits = values["logits"]
    alone = "decoder_input_ids" not in inputs
    ids = inputs["input_ids" if alone else "decoder_input_ids"].cpu()
    mask = inputs.get("attention_mask" if alone else "decoder_attention_mask")
    present = torch.ones_like(ids).bool() if mask is None else mask.bool().cpu()
    number = present.cumsum(1) - 1
    if not alone:
        # The tokens of the source come first.
        number = number + inputs["attention_mask"].sum(1, keepdim=True).cpu()
    uniform = data["uniform"]
    number = number.clamp(0, uniform.shape[1] - 1)
    drawn = torch.full((len(ids), len(uniform), ids.shape[1]), -1)
    for row in range(len(ids)):
        # One distribution at a time: all of them at once would be of the size of the vocabulary.
        for place in range(1, ids.shape[1]):
            if present[row, place - 1] and present[row, place]:
                allowed = data["allowed"].clone()
                allowed[ids[row, place]] &= data["same"]
                one = logits[row, place - 1, : len(allowed)].double().cpu()
                one = one.masked_fill(~allowed[: len(one)], float("-inf"))
                if data["likeliest"]:
                    drawn[row, :, place] = one.argmax()
                else:
                    drawn[row, :, place] = inverse(one.softmax(0), uniform[:, number[row, place]])
    state["found"]["ids"] = drawn


def inverse(weights: Float[Tensor, " id"], uniform: Float[Tensor, " draw"]) -> Int[Tensor, " draw"]:
    """Where the distribution function of some weights passes numbers in [0, 1).

    Args:
        weights: At least 0, not all of them 0.
        uniform: The numbers.

    Returns:
        One index per number; never one of weight 0.
    """
    reached = weights.cumsum(0)
    # Below the whole, so that rounding cannot lead past the last index.
    most = torch.nextafter(reached[-1], torch.zeros_like(reached[-1]))
    return torch.searchsorted(reached, (uniform.to(reached) * reached[-1]).minimum(most), right=True)
