"""Derivatives along every feature's displacement: the rows, and the sums, that forward mode and differences share.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.path import advance

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor


def directional_products(
    run: dict[str, Any],
    state: dict[str, Any],
    question: dict[str, Any],
    slope: Callable[[Tensor, Tensor, Tensor], Float[Tensor, "row column"]],
) -> dict[str, Any]:
    """One row per feature and point, moved along that feature's displacement.

    Args:
        run: The batch (see `whence.probe.rows`).
        state: Shared state (see `whence.probe.path`).
        question: See `whence.probe.differentiate`.
        slope: The derivative of every column along the chosen tokens of each row, from the rows' examples
            [row], their points [row], and the chosen tokens [row, token]; on the CPU, in float64.

    Returns:
        A result of the same form as reverse mode's; its ``dots`` are the sum over features at the last point,
        and it can see no leak, since no feature's displacement reaches an earlier step. ``at_clean`` is None.
    """
    features = state["features"]
    count, columns = run["columns"].shape[:2]
    pairs, points = features["rows"], torch.tensor(question["points"], dtype=torch.float64)
    total = torch.zeros(count, columns, features["count"], dtype=torch.float64)
    dots = torch.zeros(2, count, columns, dtype=torch.float64)
    number = torch.arange(len(points)).repeat_interleave(len(pairs))
    pairs = pairs.repeat(len(points), 1)
    weights = torch.tensor(question["weights"], dtype=torch.float64)
    for part in torch.arange(len(pairs)).split(question["rows"]):
        who, feature = pairs[part].unbind(1)
        found = slope(who, points[number[part]], features["of"][who] == feature[:, None])
        advance(question, 2 * len(part))
        total.transpose(1, 2).index_put_((who, feature), found * weights[number[part]][:, None], accumulate=True)
        last = number[part] == len(points) - 1
        dots[0].index_add_(0, who[last], found[last])
        dots[1].index_add_(0, who[last], found[last].abs())
    wide = torch.promote_types(torch.get_default_dtype(), run["columns"].dtype)
    return {"values": total.to(wide), "leak": torch.zeros(count, columns), "dots": dots, "at_clean": None}
