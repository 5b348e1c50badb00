"""measure: step functions of the untouched model, straight from ids, in one pass.

Every edited run is held against these numbers. Programs: they travel to remote places by their source (see
`whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.rows import all_places, chosen_logits, forward_rows, keep_value, target_values

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def measure(
    model: Any, run: dict[str, Any], scores: list[dict[str, Any]], count: int
) -> list[Float[Tensor, "example step"]]:
    """Values of step functions on the clean input.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        scores: The step functions.
        count: How many examples the batch has.

    Returns:
        One tensor per step function, on the CPU.
    """
    everyone = torch.arange(count)
    with torch.no_grad():
        out = forward_rows(model, run, everyone, [], keep_value)
        return [target_values(run, score, everyone, out["logits"]).cpu() for score in scores]


def step_logits(model: Any, run: dict[str, Any], count: int) -> Float[Tensor, "example step vocab"]:
    """The logits of every step on the clean input, on the CPU.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        count: How many examples the batch has.
    """
    everyone = torch.arange(count)
    with torch.no_grad():
        out = forward_rows(model, run, everyone, [], keep_value)
        return chosen_logits(all_places(run, everyone, out["logits"].shape[1]), out["logits"]).cpu()
