"""locate: where a number that is none comes from, asked only after one was found.

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.rows import forward_rows, keep_value, target_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def locate(
    model: Any, run: dict[str, Any], score: dict[str, Any] | None, leaves: list[dict[str, Any]], count: int
) -> dict[str, Any]:
    """Find the weights, the site of the forward pass, or of the backward pass, that are not finite.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function whose gradient is looked at, or None for the forward pass alone.
        leaves: Sites along the way, in the order of the forward pass.
        count: How many examples the batch has.

    Returns:
        ``weights`` (names of parameters), ``forward`` and ``backward`` (the first site that is not finite in
        the order of that pass, or None).
    """
    found: dict[str, Any] = {"weights": broken_weights(model), "forward": None, "backward": None}
    everyone = torch.arange(count)
    with torch.no_grad():
        out = forward_rows(model, run, everyone, leaves, keep_value)
    found["forward"] = first_broken(leaves, out["values"])
    if found["weights"] or found["forward"] or score is None:
        return found
    with torch.enable_grad():
        out = forward_rows(model, run, everyone, leaves, first_is_leaf(leaves[0]["key"]))
        steps = target_values(run, score, everyone, out["logits"])
        grads = torch.autograd.grad(steps.sum(), out["values"], allow_unused=True)
    known = [(leaf, grad) for leaf, grad in zip(leaves, grads, strict=True) if grad is not None]
    found["backward"] = first_broken([leaf for leaf, _ in known[::-1]], [grad for _, grad in known[::-1]])
    return found


def first_is_leaf(key: str) -> Callable[[dict[str, Any], Tensor], Tensor | None]:
    """An edit that makes one site a leaf of the graph."""

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor | None:
        return value.detach().requires_grad_(True) if leaf["key"] == key else None

    return edit


def first_broken(leaves: list[dict[str, Any]], values: list[Tensor]) -> str | None:
    """The first site whose value is not finite."""
    for leaf, value in zip(leaves, values, strict=True):
        if not bool(torch.isfinite(value).all()):
            return leaf["key"]
    return None


def broken_weights(model: Any) -> list[str]:
    """Names of parameters that hold NaN or infinity, where the weights are in this process."""
    return [
        name
        for name, value in model._module.named_parameters()
        if value.device.type != "meta" and value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
