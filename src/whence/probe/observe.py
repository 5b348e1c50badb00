"""observe: named internal values of the clean run.

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.rows import forward_rows, keep_value

if TYPE_CHECKING:
    from torch import Tensor


def observe(model: Any, run: dict[str, Any], leaves: list[dict[str, Any]], count: int) -> dict[str, Tensor]:
    """Read sites in one pass.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        leaves: The sites, in the order of the forward pass.
        count: How many examples the batch has.

    Returns:
        For each leaf's key, its value for every example, on the CPU.
    """
    with torch.no_grad():
        out = forward_rows(model, run, torch.arange(count), leaves, keep_value)
    return {leaf["key"]: value.cpu() for leaf, value in zip(leaves, out["values"], strict=True)}
