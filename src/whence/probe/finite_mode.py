"""Finite differences: the derivative along every feature's displacement from forward passes alone.

For places that give no gradients. These functions travel to remote places by their source (see
`whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.models.programs import facts
from whence.probe.directions import directional_products
from whence.probe.path import at_points

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def finite_products(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    question: dict[str, Any],
) -> list[dict[str, Any]]:
    """Central differences along every feature's displacement at all points.

    ``(f(x_a + h d) - f(x_a - h d)) / 2 h`` with h the cube root of the precision, where rounding and
    curvature cost about the same.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        state: Shared state (see `whence.probe.path`).
        group: The leaves of the layer.
        question: See `whence.probe.differentiate`.

    Returns:
        One result (see `whence.probe.directions`), with ``whole``: the derivative along the whole displacement
        at the last point, by a pair of rows of its own.
    """
    count = run["columns"].shape[0]
    everyone, ones = torch.arange(count), torch.ones(count, dtype=torch.float64)
    rows, step = question["rows"], step_of(model)

    def slope(who: Tensor, alphas: Tensor, chosen: Tensor) -> Tensor:
        return slopes(model, run, score, state, group, who, alphas, chosen, rows, step)

    result = directional_products(run, state, question, slope)
    return [
        {
            **result,
            "at_clean": at_points(model, run, score, state, group, everyone, ones, count).double(),
            "whole": slope(everyone, ones * question["points"][-1], state["features"]["of"] >= 0),
        }
    ]


def step_of(model: Any) -> float:
    """How far along the displacement the two rows of a difference stand."""
    dtype = getattr(torch, facts(model)["dtype"])
    # Many models compute their norms in float32 whatever the rest is in.
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) ** (1 / 3)


def slopes(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    examples: Int[Tensor, " row"],
    alphas: Float[Tensor, " row"],
    chosen: Bool[Tensor, "row token"],
    rows: int,
    step: float,
) -> Float[Tensor, "row column"]:
    """Slope of every column along the displacement of the chosen tokens of each row."""
    signs = torch.tensor([step, -step], dtype=torch.float64).repeat_interleave(len(examples))
    shifts = signs[:, None] * chosen.repeat(2, 1)
    together = 2 * rows if rows > 1 else 1
    found = at_points(model, run, score, state, group, examples.repeat(2), alphas.repeat(2), together, shifts)
    high, low = found.double().chunk(2)
    return (high - low) / (2 * step)
