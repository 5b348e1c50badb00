"""Forward mode: one row per feature, whose tangent is that feature's displacement; it answers for all columns.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.attention
from torch.autograd import forward_ad

from whence.probe.directions import directional_products
from whence.probe.paired import differentiable_rows
from whence.probe.path import chosen_move, passes_clean, stand
from whence.probe.rows import at_steps, column_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from jaxtyping import Bool, Float
    from torch import Tensor


def forward_products(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    question: dict[str, Any],
) -> list[dict[str, Any]]:
    """Jacobian-vector products along every feature's displacement at all points.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        state: Shared state (see `whence.probe.path`).
        group: The leaves of the layer.
        question: See `whence.probe.differentiate`.

    Returns:
        One result (see `whence.probe.directions`), with ``at_clean`` where the point is the input.
    """
    count, columns = run["columns"].shape[:2]
    at_clean = torch.zeros(count, columns, dtype=torch.float64)
    seen = torch.zeros(count, dtype=torch.bool)

    def slope(stands: dict[str, Tensor], chosen: Tensor) -> Tensor:
        value, tangent = tangents(model, run, score, state, group, stands, chosen)
        state["counts"]["rows"] += len(chosen)
        state["counts"]["jvps"] += len(chosen)
        at_one = (stands["at"] == 1).nonzero()[:, 0]
        at_clean.index_copy_(0, stands["examples"][at_one], value.double().cpu()[at_one])
        seen[stands["examples"][at_one]] = True
        return tangent.double().cpu()

    result = directional_products(run, state, question, slope)
    return [{**result, "at_clean": at_clean if passes_clean(state, question) and bool(seen.all()) else None}]


def tangents(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    stands: dict[str, Tensor],
    chosen: Bool[Tensor, "row token"],
    states: Float[Tensor, "row step unit"] | None = None,
) -> tuple[Float[Tensor, "row column"], Float[Tensor, "row column"]]:
    """Value and derivative of every column along the displacement of the chosen tokens of each row.

    With ``states`` the derivative is that of their product with the last hidden state of each step.
    """
    examples = stands["examples"]
    edit = tangent_edit(state, stands, chosen)
    # Fused attention kernels have no tangent; the plain one has, and gives the same numbers.
    with torch.no_grad(), forward_ad.dual_level(), plain_attention():
        out = differentiable_rows(model, run, score, state, group, stands, edit)
        value, tangent = forward_ad.unpack_dual(out["steps"])
        if states is not None:
            moved = forward_ad.unpack_dual(out["hidden"]).tangent
            tangent = None if moved is None else (at_steps(run, examples, moved).to(states) * states).sum(-1)
        if tangent is None:
            tangent = torch.zeros_like(value)
        return column_values(run, examples, value), column_values(run, examples, tangent)


def no_tangent(error: Exception) -> bool:
    """Whether an error says that some operation cannot be differentiated in forward mode."""
    text = str(error)
    return any(sign in text for sign in ("forward AD", "forward mode AD", "Jacobian-vector product", "jvp"))


def plain_attention() -> AbstractContextManager[object]:
    """Attention without fused kernels, inside the ``with`` block."""
    # Spelled out from `torch`: torch's enumeration cannot be sent under a name of its own.
    return torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)


def tangent_edit(
    state: dict[str, Any], stands: dict[str, Tensor], chosen: Bool[Tensor, "row token"]
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that puts sites at a point of their path, moving along the displacement of the chosen tokens."""

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        point, move = stand(state, leaf, stands, value)
        return forward_ad.make_dual(point, chosen_move(state, leaf, chosen, move))

    return edit
