"""Finite differences: the derivative along every feature's displacement from forward passes alone.

For places that give no gradients. These functions travel to remote places by their source (see
`whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.models.programs import facts
from whence.probe.directions import directional_products
from whence.probe.path import at_points, end_stands, last_stands

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
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
        at the last point, by a pair of rows of its own; None where features are moved alone.
    """
    count = run["columns"].shape[0]
    everyone = torch.arange(count)
    rows, step = question["rows"], step_of(model)

    def slope(stands: dict[str, Tensor], chosen: Tensor) -> Tensor:
        return slopes(model, run, score, state, group, stands, chosen, rows, step)

    result = directional_products(run, state, question, slope)
    clean = at_points(model, run, score, {**state, "way": None}, group, end_stands(everyone, 1.0, 0), count)
    whole = None
    if not question["alone"]:
        whole = slope(last_stands(question, everyone), state["features"]["of"] >= 0)
    return [{**result, "at_clean": clean.double(), "whole": whole}]


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
    stands: dict[str, Tensor],
    chosen: Bool[Tensor, "row token"],
    rows: int,
    step: float,
) -> Float[Tensor, "row column"]:
    """Slope of every column along the displacement of the chosen tokens of each row."""
    signs = torch.tensor([step, -step], dtype=torch.float64).repeat_interleave(len(chosen))
    shifts = signs[:, None] * chosen.repeat(2, 1)
    together = 2 * rows if rows > 1 else 1
    twice = {name: values.repeat(2) for name, values in stands.items()}
    found = at_points(model, run, score, state, group, twice, together, shifts)
    high, low = found.double().chunk(2)
    return (high - low) / (2 * step)
