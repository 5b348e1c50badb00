"""Forward mode: one row per feature, whose tangent is that feature's displacement; it answers for all columns.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.attention
from torch.autograd import forward_ad

from whence.probe.directions import directional_products
from whence.probe.paired import paired_tangent_edit, paired_targets, with_inputs
from whence.probe.path import at_point, span_ends
from whence.probe.rows import column_values, forward_rows, target_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from jaxtyping import Bool, Float, Int
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

    def slope(who: Tensor, alphas: Tensor, chosen: Tensor) -> Tensor:
        value, tangent = tangents(model, run, score, state, group, who, alphas, chosen)
        references = 0 if state["rules"] is None else len(who.unique())
        state["counts"]["rows"] += len(who) + references
        state["counts"]["jvps"] += len(who)
        at_one = (alphas == 1).nonzero()[:, 0]
        at_clean.index_copy_(0, who[at_one], value.double().cpu()[at_one])
        return tangent.double().cpu()

    result = directional_products(run, state, question, slope)
    return [{**result, "at_clean": at_clean if 1.0 in question["points"] else None}]


def tangents(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    examples: Int[Tensor, " row"],
    alphas: Float[Tensor, " row"],
    chosen: Bool[Tensor, "row token"],
) -> tuple[Float[Tensor, "row column"], Float[Tensor, "row column"]]:
    """Value and derivative of every column along the displacement of the chosen tokens of each row."""
    count = len(examples)
    # Fused attention kernels have no tangent; the plain one has, and gives the same numbers.
    with torch.no_grad(), forward_ad.dual_level(), plain_attention():
        if state["rules"] is None:
            out = forward_rows(model, run, examples, group, tangent_edit(state, examples, alphas, chosen))
            steps = target_values(run, score, examples, out["logits"])
        else:
            # All rows of an example have the same reference.
            references, partner = examples.unique(return_inverse=True)
            pairs = {**state["rules"], "partner": partner, "rows": count + len(references)}
            everyone = torch.cat([examples, references])
            none = torch.zeros(len(references), dtype=alphas.dtype)
            unmoved = torch.zeros(len(references), chosen.shape[1], dtype=torch.bool)
            edit = paired_tangent_edit(
                state, everyone, torch.cat([alphas, none]), torch.cat([chosen, unmoved]), group, pairs
            )
            out = forward_rows(model, run, everyone, with_inputs(state, group), edit, pairs)
            steps = paired_targets(run, score, everyone, out["logits"], pairs)[:count]
        value, tangent = forward_ad.unpack_dual(steps)
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
    state: dict[str, Any],
    examples: Int[Tensor, " row"],
    alphas: Float[Tensor, " row"],
    chosen: Bool[Tensor, "row token"],
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that puts sites at a point of their path, moving along the displacement of the chosen tokens."""
    offsets = state["features"]["offsets"]

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        clean, low = span_ends(state, leaf, examples, value)
        offset = offsets[leaf["stream"]]
        moves = chosen[:, offset : offset + clean.shape[1]].to(clean.device)
        moves = moves.view(*moves.shape, *(1,) * (clean.dim() - 2))
        direction = torch.where(moves, clean - low, torch.zeros_like(clean))
        return forward_ad.make_dual(at_point(clean, low, alphas), direction)

    return edit
