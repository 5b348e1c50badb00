"""Passes whose rows come in pairs, a run and the run of its reference, for `whence.probe.rules`.

These functions travel to remote places by their source (see `whence.models.programs` for the rules). ``rules`` is
plain data: ``bends`` and ``logit_cap`` of the model, ``multipliers`` of the step function (or None), and ``points``
and ``weights`` of a quadrature rule on [0, 1] for step functions that have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from whence.probe.path import at_point, is_input, span_ends
from whence.probe.respond import leaf_order
from whence.probe.rows import chosen_logits, step_values
from whence.probe.rules import by_row
from whence.step_functions.inputs import StepInputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def with_references(rows: dict[str, Any], rules: dict[str, Any]) -> dict[str, Any]:
    """Rows of a pass in reverse mode, each followed by its reference: of weight 0, at the end of the path."""
    none = torch.zeros_like(rows["alphas"])
    examples = rows["examples"]
    return {
        "examples": examples.repeat(2),
        "alphas": torch.cat([rows["alphas"], none]),
        "weights": torch.cat([rows["weights"], none]),
        "last": torch.cat([rows["last"], none.bool()]),
        "pairs": {**rules, "partner": torch.arange(len(examples)), "rows": 2 * len(examples)},
    }


def with_inputs(state: dict[str, Any], leaves: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The leaves and, where they are not among them, the embeddings, in the order of the forward pass."""
    asked = [leaf["key"] for leaf in leaves]
    return sorted([*leaves, *(leaf for leaf in state["embeds"] if leaf["key"] not in asked)], key=leaf_order)


def paired_leaf_edit(
    state: dict[str, Any],
    rows: dict[str, Any],
    displacement: dict[str, Tensor],
    leaves: list[dict[str, Any]],
    shared: bool,
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that gives the reference's rows their input, and makes the asked sites leaves of the graph.

    A deeper site has the values that follow from both inputs. Where one pass serves several layers, only the first is
    a leaf; the others hang on it.
    """
    asked = [leaf["key"] for leaf in leaves]
    started: list[str] = []

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        value, moved = value_and_move(state, leaf, value, rows["examples"], rows["alphas"], rows["pairs"])
        if leaf["key"] not in asked:
            return value
        displacement[leaf["key"]] = moved
        if started and shared:
            return value
        started.append(leaf["key"])
        return value.detach().requires_grad_(True)

    return edit


def paired_tangent_edit(
    state: dict[str, Any],
    examples: Int[Tensor, " row"],
    alphas: Float[Tensor, " row"],
    chosen: Bool[Tensor, "row token"],
    leaves: list[dict[str, Any]],
    pairs: dict[str, Any],
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that gives the reference's rows their input, and lets the asked sites move along their displacement."""
    asked = [leaf["key"] for leaf in leaves]
    offsets = state["features"]["offsets"]

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        value, moved = value_and_move(state, leaf, value, examples, alphas, pairs)
        if leaf["key"] not in asked:
            return value
        offset = offsets[leaf["stream"]]
        moves = chosen[:, offset : offset + value.shape[1]].to(value.device)
        moves = moves.view(*moves.shape, *(1,) * (value.dim() - 2))
        return forward_ad.make_dual(value.detach(), torch.where(moves, moved, torch.zeros_like(moved)))

    return edit


def value_and_move(
    state: dict[str, Any],
    leaf: dict[str, Any],
    value: Tensor,
    examples: Int[Tensor, " row"],
    alphas: Float[Tensor, " row"],
    pairs: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The value of a site in rows of both kinds, and how far the explained ones are from their references."""
    if is_input(leaf, state["embeds"]):
        clean, low = span_ends(state, leaf, examples, value)
        return at_point(clean, low, alphas), clean - low
    rows = by_row(value.detach(), pairs)
    count = len(pairs["partner"])
    moved = torch.zeros_like(rows)
    moved[:count] = rows[:count] - rows[count:][pairs["partner"].to(rows.device)]
    return value, moved


def paired_targets(
    run: dict[str, Any],
    score: dict[str, Any],
    examples: Int[Tensor, " row"],
    logits: Tensor,
    pairs: dict[str, Any],
) -> Float[Tensor, "row step"]:
    """The step function's value at every step of every row, whose derivative is its multipliers."""
    chosen = chosen_logits(run, examples, logits)
    ids = run["target_ids"][examples].to(chosen.device)
    values = step_values(score, chosen.detach(), ids)
    count = len(pairs["partner"])
    high, low = chosen[:count].detach(), chosen[count:].detach()[pairs["partner"].to(chosen.device)]
    ids = ids[:count]
    if pairs["multipliers"] is None:
        multipliers = mean_gradient(score, ids, high, low, pairs)
    else:
        multipliers = pairs["multipliers"](StepInputs(high, ids), StepInputs(low, ids), **score["options"])
    # A masked token's logit is -inf in both, and does not move.
    moving = torch.where(torch.isfinite(high), chosen[:count] - high, 0.0)
    return torch.cat([values[:count] + (multipliers * moving).sum(-1), values[count:]])


def mean_gradient(
    score: dict[str, Any],
    ids: Int[Tensor, "row step"],
    high: Float[Tensor, "row step vocab"],
    low: Float[Tensor, "row step vocab"],
    pairs: dict[str, Any],
) -> Float[Tensor, "row step vocab"]:
    """The step function's gradient, averaged along the straight line between two logits."""
    total = torch.zeros_like(high)
    with torch.enable_grad():
        for point, weight in zip(pairs["points"], pairs["weights"], strict=True):
            here = torch.where(high == low, high, low + point * (high - low)).requires_grad_(True)
            total += weight * torch.autograd.grad(step_values(score, here, ids).sum(), here)[0]
    return total
