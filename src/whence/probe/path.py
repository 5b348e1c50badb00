"""Where the site of each row is put: a point on its way, alone or with the others, with or without noise.

These functions travel to remote places by their source (see `whence.models.programs` for the rules). The
``state`` they share: ``embeds`` (the embedding leaves), ``references`` (a list, see `whence.probe.rows`, or
None), ``ends`` (values of deeper sites in the clean run, and in the run of each reference that is used),
``features`` (see `whence.probe.differentiate`), ``counts``, ``rules`` (see `whence.probe.paired`; by them ``ends``
are those of each row's reference in the pass under way, and ``lows`` [reference, example, step] its targets), and
``way``: what holds for all rows of a path, ``noise`` (with ``carried``, ``item`` and ``seed``) and ``words`` with their
``distance`` (see `whence.probe.words`). A way of None is straight.

``stands`` describe rows, one entry of each tensor per row: ``examples``, ``sample`` (the number of the point in
the path), ``at`` (the point), ``start`` and ``stop`` (of the stretch that the derivative is multiplied with),
``weight``, ``origin`` (which reference), and ``feature`` where only that one is on its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.noise import noise_like
from whence.probe.rows import column_values, edited_targets, reference_rows
from whence.probe.words import along_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def advance(question: dict[str, Any], units: int) -> None:
    """Report progress, where someone listens (a place far away cannot call back)."""
    if question["advance"] is not None:
        question["advance"](units)


def is_input(leaf: dict[str, Any], embeds: list[dict[str, Any]]) -> bool:
    """Whether a leaf is one of the input embeddings."""
    return leaf["key"] in [embed["key"] for embed in embeds]


def stands_at(
    question: dict[str, Any], examples: Int[Tensor, " row"], samples: Int[Tensor, " row"]
) -> dict[str, Tensor]:
    """Rows that stand at points of a path."""
    count = len(question["points"])
    legs = torch.tensor(question["legs"] or [(0.0, 1.0)] * count, dtype=torch.float64)
    return {
        "examples": examples,
        "sample": samples,
        "at": torch.tensor(question["points"], dtype=torch.float64)[samples],
        "start": legs[samples, 0],
        "stop": legs[samples, 1],
        "weight": torch.tensor(question["weights"], dtype=torch.float64)[samples],
        "origin": torch.tensor(question["origins"] or [0] * count)[samples],
    }


def all_stands(question: dict[str, Any], features: dict[str, Any], count: int) -> dict[str, Tensor]:
    """Every row of a path, the points of one example (or of one feature of it, alone) after another."""
    samples = torch.tensor(question["samples"])
    if not question["alone"]:
        examples = torch.arange(count).repeat_interleave(len(samples))
        return stands_at(question, examples, samples.repeat(count))
    pairs = features["rows"].repeat_interleave(len(samples), dim=0)
    found = stands_at(question, pairs[:, 0], samples.repeat(len(features["rows"])))
    return {**found, "feature": pairs[:, 1]}


def some_stands(stands: dict[str, Tensor], part: Int[Tensor, " some"]) -> dict[str, Tensor]:
    """Some of the rows."""
    return {name: values[part] for name, values in stands.items()}


def end_stands(examples: Int[Tensor, " row"], at: float, origin: int) -> dict[str, Tensor]:
    """Rows with the site at its clean value (1), or at a reference (0)."""
    question = {"points": [at], "weights": [1.0], "legs": [], "origins": [origin]}
    return stands_at(question, examples, torch.zeros_like(examples))


def last_stands(question: dict[str, Any], examples: Int[Tensor, " row"]) -> dict[str, Tensor]:
    """The row at the last point of the path, for each example."""
    return stands_at(question, examples, torch.full_like(examples, question["samples"][-1]))


def passes_clean(state: dict[str, Any], question: dict[str, Any]) -> bool:
    """Whether some row has the site exactly at its clean value."""
    way = state["way"]
    return 1.0 in [question["points"][k] for k in question["samples"]] and not (way is not None and way["noise"])


def stand(
    state: dict[str, Any], leaf: dict[str, Any], stands: dict[str, Tensor], value: Tensor
) -> tuple[Tensor, Tensor]:
    """The point that a leaf is put at, and what the derivative there is multiplied with, for each row.

    Args:
        state: Shared state (see the module).
        leaf: The leaf.
        stands: The rows (see the module).
        value: The leaf's value in this run of the model, which is clean up to it.

    Returns:
        Two tensors like ``value``.
    """
    clean, low = span_ends(state, leaf, stands, value)
    way = state["way"]
    if way is not None and way["words"] is not None:
        table = way["words"][leaf["stream"]]
        point, start, stop = (
            along_words(table, stands["examples"], stands[key], clean) for key in ("at", "start", "stop")
        )
        move = stop - start
    else:
        point = at_point(clean, low, stands["at"])
        move = per_row(stands["stop"] - stands["start"], clean) * (clean - low)
    if "feature" in stands:
        mine = state["features"]["of"][stands["examples"]] == stands["feature"][:, None]
        chosen = at_leaf(state, leaf, mine, clean)
        point, move = torch.where(chosen, point, clean), torch.where(chosen, move, torch.zeros_like(move))
    if way is not None and way["noise"]:
        features = {name: at_leaf(state, leaf, state["features"][name], clean) for name in ("held", "noisy")}
        noise = noise_like(clean, way, leaf["stream"], features, stands)
        point, move = point + noise, move + noise if way["carried"] else move
    return point, move


def span_ends(
    state: dict[str, Any], leaf: dict[str, Any], stands: dict[str, Tensor], value: Tensor
) -> tuple[Tensor, Tensor]:
    """The clean value of a leaf and its reference, for each row."""
    examples, origin = stands["examples"], stands["origin"]
    clean = value.detach()
    references = state["references"]
    if references is None:
        return clean, torch.zeros_like(clean)
    inner = not is_input(leaf, state["embeds"])
    if inner and state["rules"] is not None:
        return clean, state["ends"][leaf["key"]]
    if inner:
        clean = state["ends"]["clean"][leaf["key"]][examples].to(value)
    low = torch.empty_like(clean)
    for number in origin.unique().tolist():
        rows = (origin == number).nonzero()[:, 0]
        if inner:
            low[rows] = state["ends"][number][leaf["key"]][examples[rows]].to(low)
        else:
            low[rows] = reference_rows(references[number], leaf["stream"], examples[rows], clean[rows])
    return clean, low


def at_point(clean: Tensor, low: Tensor, alpha: Float[Tensor, " row"]) -> Tensor:
    """The point of a straight way; exactly the clean value at alpha = 1."""
    alpha = per_row(alpha, clean)
    return torch.where(alpha == 1, clean, low + alpha * (clean - low))


def per_row(numbers: Float[Tensor, " row"], value: Tensor) -> Tensor:
    """Numbers of the rows in the shape that multiplies a site's value."""
    return numbers.to(value).view(-1, *(1,) * (value.dim() - 1))


def at_leaf(state: dict[str, Any], leaf: dict[str, Any], tokens: Tensor, value: Tensor) -> Tensor:
    """The part of the token axis that a leaf has, in the shape that multiplies its value."""
    offset = state["features"]["offsets"][leaf["stream"]]
    mine = tokens[:, offset : offset + value.shape[1]].to(value.device)
    return mine.view(*mine.shape, *(1,) * (value.dim() - 2))


def at_points(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    stands: dict[str, Tensor],
    rows: int,
    shifts: Float[Tensor, "row token"] | None = None,
) -> Float[Tensor, "row column"]:
    """Targets with a site at points of its path, and tokens a little beside it.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        state: Shared state (see the module).
        group: The leaves of the layer.
        stands: The rows (see the module).
        rows: Rows per pass.
        shifts: How far each token is moved along what its derivative is multiplied with, or None.

    Returns:
        Every column of every row, on the CPU.
    """
    found = []
    for part in torch.arange(len(stands["examples"])).split(rows):
        some = some_stands(stands, part)
        edit = shifted_edit(state, some, None if shifts is None else shifts[part])
        steps = edited_targets(model, run, score, some["examples"], group, edit)
        found.append(column_values(run, some["examples"], steps))
    state["counts"]["rows"] += len(stands["examples"])
    return torch.cat(found)


def shifted_edit(
    state: dict[str, Any], stands: dict[str, Tensor], shifts: Float[Tensor, "row token"] | None
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that puts sites at a point of their path, and tokens a little beside it."""

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        point, move = stand(state, leaf, stands, value)
        return point if shifts is None else point + at_leaf(state, leaf, shifts, point).to(point) * move

    return edit


def chosen_move(state: dict[str, Any], leaf: dict[str, Any], chosen: Bool[Tensor, "row token"], move: Tensor) -> Tensor:
    """What a derivative is multiplied with, at the chosen tokens only."""
    return torch.where(at_leaf(state, leaf, chosen, move), move, torch.zeros_like(move))
