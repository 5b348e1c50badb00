"""Finite differences: the derivative along every feature's displacement from forward passes alone.

For places that give no gradients. These functions travel to remote places by their source (see
`whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.models.programs import facts
from whence.probe.path import advance, at_points

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
        One result, of the same form as forward mode's, with ``whole``: the derivative along the whole
        displacement at the last point, by a pair of rows of its own.
    """
    features = state["features"]
    count, columns = run["columns"].shape[:2]
    pairs, points = features["rows"], torch.tensor(question["points"], dtype=torch.float64)
    total = torch.zeros(count, columns, features["count"], dtype=torch.float64)
    final = torch.zeros(2, count, columns, dtype=torch.float64)
    everyone, ones = torch.arange(count), torch.ones(count, dtype=torch.float64)
    at_clean = at_points(model, run, score, state, group, everyone, ones, count).double()
    number = torch.arange(len(points)).repeat_interleave(len(pairs))
    pairs = pairs.repeat(len(points), 1)
    weights = torch.tensor(question["weights"], dtype=torch.float64)
    for part in torch.arange(len(pairs)).split(question["rows"]):
        who, feature = pairs[part].unbind(1)
        chosen = features["of"][who] == feature[:, None]
        slope = slopes(model, run, score, state, group, who, points[number[part]], chosen, question["rows"])
        advance(question, 2 * len(part))
        total.transpose(1, 2).index_put_((who, feature), slope * weights[number[part]][:, None], accumulate=True)
        last = number[part] == len(points) - 1
        final[0].index_add_(0, who[last], slope[last])
        final[1].index_add_(0, who[last], slope[last].abs())
    able = features["of"] >= 0
    whole = slopes(model, run, score, state, group, everyone, points[-1:].expand(count), able, question["rows"])
    wide = torch.promote_types(torch.get_default_dtype(), run["columns"].dtype)
    leak = torch.zeros(count, columns)
    return [{"values": total.to(wide), "leak": leak, "dots": final, "whole": whole, "at_clean": at_clean}]


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
) -> Float[Tensor, "row column"]:
    """Slope of every column along the displacement of the chosen tokens of each row."""
    dtype = getattr(torch, facts(model)["dtype"])
    # Many models compute their norms in float32 whatever the rest is in.
    step = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) ** (1 / 3)
    signs = torch.tensor([step, -step], dtype=torch.float64).repeat_interleave(len(examples))
    shifts = signs[:, None] * chosen.repeat(2, 1)
    together = 2 * rows if rows > 1 else 1
    found = at_points(model, run, score, state, group, examples.repeat(2), alphas.repeat(2), together, shifts)
    high, low = found.double().chunk(2)
    return (high - low) / (2 * step)
