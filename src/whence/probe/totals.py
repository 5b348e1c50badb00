"""What is kept of many rows: weighted sums, or means with their scatter, brought up to date row by row.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).

A result is what one layer has: ``values`` [example, column, token or feature (, unit)]; ``leak`` and ``dots``
(see `whence.probe.reverse_mode`); ``sums`` [point, example, column], of a sampled path what the shares of each
point sum to; ``scatter``, the sum of squared deviations from the mean, and ``jumps``, the sum of squares of the
terms that the scatter is the sum of. Deviations are taken from the running mean (Welford 1962), so a scatter
of nothing is 0 and not the difference of large numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

NORMS = ("l1", "l2", "linf")


def new_result(count: int, columns: int, question: dict[str, Any]) -> dict[str, Any]:
    """A result of nothing."""
    return {
        "values": None,
        "scatter": None,
        "jumps": None,
        "leak": torch.zeros(count, columns),
        "dots": torch.zeros(2, count, columns, dtype=torch.float64),
        "sums": torch.zeros(len(question["samples"]), count, columns, dtype=torch.float64),
        "at_clean": None,
    }


def spreads(question: dict[str, Any]) -> bool:
    """Whether the scatter of the points is wanted."""
    return (question["sampled"] and len(question["samples"]) > 1) or question["reduce"] == "variance"


def takes_norm_of(question: dict[str, Any], when: str) -> bool:
    """Whether a norm is wanted of each row's gradient, or at the end, of the mean gradient of several rows."""
    return question["reduce"] in NORMS and (when == "row") == (len(question["samples"]) == 1)


def add_row(
    result: dict[str, Any],
    question: dict[str, Any],
    place: tuple[Any, ...],
    values: Float[Tensor, "..."],
    weight: float,
    number: int,
) -> None:
    """Bring a result up to date with one more row of some of its cells.

    Args:
        result: The result, whose ``values`` are there.
        question: See `whence.probe.differentiate`.
        place: Index of the cells.
        values: What the row has for them.
        weight: Weight of the row in a sum.
        number: How many rows the cells have had, with this one.
    """
    if not spreads(question):
        result["values"][place] += weight * values
        return
    mean = result["values"][place]
    off = values - mean
    mean = mean + off / number
    result["values"][place] = mean
    term = off * (values - mean)
    if question["reduce"] in ("l2", "variance"):
        term = term.sum(-1)
    result["scatter"][place] += term
    if question["reduce"] == "variance":
        result["jumps"][place] += term.square()


def start_totals(result: dict[str, Any], question: dict[str, Any], shape: Sequence[int], like: Tensor) -> None:
    """Zeros to add to."""
    result["values"] = like.new_zeros(shape)
    if spreads(question):
        narrow = shape[:-1] if question["reduce"] in ("l2", "variance") else shape
        result["scatter"] = like.new_zeros(narrow)
        result["jumps"] = like.new_zeros(narrow)


def finish(result: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    """The values that are wanted, with their standard errors as ``error`` (or None).

    The error of a norm of the mean gradient is the norm of the mean gradient's own error, which bounds it. The
    error of a variance is that of the mean of the terms of its scatter: for Gaussian gradients they are
    independent draws with the variance as their mean.
    """
    count, reduce = len(question["samples"]), question["reduce"]
    values, error = result["values"], None
    if takes_norm_of(question, "end"):
        values = norm_over_units(values, reduce)
    if spreads(question) and reduce == "variance":
        values = result["scatter"] / count
        if count > 2:
            terms = count - 1
            spread = (result["jumps"] - result["scatter"].square() / terms).clamp_min(0) / (terms - 1)
            error = (terms * spread).sqrt() / count
    elif spreads(question):
        error = (result["scatter"].clamp_min(0) / (count - 1) / count).sqrt()
    return {**result, "values": values, "error": error}


def norm_over_units(grad: Tensor, reduce: str) -> Tensor:
    """The norm of each vector."""
    return torch.linalg.vector_norm(grad, {"l1": 1, "l2": 2, "linf": float("inf")}[reduce], dim=-1)


def drift_of(
    results: list[dict[str, Any]],
    question: dict[str, Any],
    here: Float[Tensor, "layer example column"] | None,
    lows: Float[Tensor, "layer origin example column"] | None,
    used: Sequence[int],
) -> Float[Tensor, "layer example column"] | None:
    """Standard error of the mean, over points, of what each point's shares miss of their own difference.

    Args:
        results: One per layer.
        question: See `whence.probe.differentiate`.
        here: Targets of the clean input.
        lows: Targets at each reference that is used.
        used: The references that are used.
    """
    if here is None or lows is None or not question["sampled"] or len(question["samples"]) < 2:
        return None
    places = [list(used).index(origin) for origin in question["origins"] or [0] * len(question["samples"])]
    mine = torch.tensor(places)
    sums = torch.stack([result["sums"] for result in results]).movedim(1, 0)
    missed = sums - (here - lows[:, mine].movedim(1, 0))
    return missed.std(0) / len(mine) ** 0.5


def fold_steps(result: dict[str, Any], columns: Float[Tensor, "example column step"]) -> dict[str, Any]:
    """A result whose columns were single steps, summed over the steps of each column."""
    member = columns > 0
    return {
        **result,
        "values": torch.einsum("ect,et...->ec...", columns.to(result["values"]), result["values"]),
        "leak": torch.where(member, result["leak"][:, None], 0.0).amax(-1),
        "dots": torch.einsum("ect,ket->kec", columns.double(), result["dots"]),
    }


def put_rows(
    result: dict[str, Any],
    question: dict[str, Any],
    parts: tuple[Tensor, Tensor, Tensor],
    stands: dict[str, Tensor],
    some: Int[Tensor, " column"],
) -> None:
    """Add the rows of one batch of vector-Jacobian products to a result.

    Args:
        result: The result.
        question: See `whence.probe.differentiate`.
        parts: ``values`` [column, row, ...], ``leak`` [column, row] and ``pairs`` [2, column, row].
        stands: The rows (see `whence.probe.path`).
        some: The columns, one after another.
    """
    values, leak, pairs = parts
    count, columns = result["leak"].shape
    if result["values"] is None:
        start_totals(result, question, (count, columns, *values.shape[2:]), values)
    chosen = slice(int(some[0]), int(some[-1]) + 1)
    pairs, leak = pairs.double().cpu(), leak.float().cpu()
    for row, (example, sample) in enumerate(zip(stands["examples"].tolist(), stands["sample"].tolist(), strict=True)):
        add_row(result, question, (example, chosen), values[:, row], float(stands["weight"][row]), sample + 1)
        result["leak"][example, chosen] = torch.maximum(result["leak"][example, chosen], leak[:, row])
        if question["sampled"]:
            result["sums"][sample, example, chosen] += pairs[0, :, row]
        if sample == question["samples"][-1] and "feature" not in stands:
            result["dots"][:, example, chosen] += pairs[:, :, row]
