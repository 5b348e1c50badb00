"""Derivatives along every feature's displacement: the rows, and the sums, that forward mode and differences share.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.path import advance, some_stands, stands_at
from whence.probe.totals import add_row, finish, new_result, start_totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor


def directional_products(
    run: dict[str, Any],
    state: dict[str, Any],
    question: dict[str, Any],
    slope: Callable[[dict[str, Tensor], Tensor], Float[Tensor, "row column"]],
) -> dict[str, Any]:
    """One row per feature and point, moved along that feature's displacement.

    Args:
        run: The batch (see `whence.probe.rows`).
        state: Shared state (see `whence.probe.path`).
        question: See `whence.probe.differentiate`.
        slope: The derivative of every column along the chosen tokens of each row, from the rows (see
            `whence.probe.path`) and the chosen tokens [row, token]; on the CPU, in float64.

    Returns:
        A result of the same form as reverse mode's; its ``dots`` are the sum over features at the last point,
        and it can see no leak, since no feature's displacement reaches an earlier step. ``at_clean`` is None.
    """
    features = state["features"]
    count, columns = run["columns"].shape[:2]
    samples = torch.tensor(question["samples"])
    result = new_result(count, columns, question)
    start_totals(result, question, (count, features["count"], columns), result["dots"])
    pairs = features["rows"].repeat(len(samples), 1)
    samples = samples.repeat_interleave(len(features["rows"]))
    # An empty range splits into one empty part, and a pass of no rows is none.
    for part in torch.arange(len(pairs)).split(question["rows"]) if len(pairs) else ():
        who, feature = pairs[part].unbind(1)
        stands = stands_at(question, who, samples[part])
        if question["alone"]:
            stands = {**stands, "feature": feature}
        found = slope(stands, features["of"][who] == feature[:, None])
        advance(question, 2 * len(part))
        for number in samples[part].unique().tolist():
            mine = (samples[part] == number).nonzero()[:, 0]
            # At one point each feature has one row, so no cell is met twice.
            place = (who[mine], feature[mine])
            weight = float(some_stands(stands, mine)["weight"][0])
            add_row(result, question, place, found[mine], weight, number + 1)
            result["sums"][question["samples"].index(number)].index_add_(0, who[mine], found[mine])
            if number == question["samples"][-1] and not question["alone"]:
                result["dots"][0].index_add_(0, who[mine], found[mine])
                result["dots"][1].index_add_(0, who[mine], found[mine].abs())
    made = finish(result, question)
    wide = torch.promote_types(torch.get_default_dtype(), run["columns"].dtype)
    for name in ("values", "error"):
        made[name] = None if made[name] is None else made[name].transpose(1, 2).to(wide)
    return made
