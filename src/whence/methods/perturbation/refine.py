"""Features left out only where it pays: coarse segments first, then what lies in those that matter most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.core.contract import Answer, Gap, Probe, Removal
from whence.core.errors import InputError, unknown_name
from whence.methods.perturbation.variants import by_step, make_answer, players, removed_values
from whence.text.segments import NAMES

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

# For each example, rows of removed features, as bytes, and the value of every column there.
Known = list[dict[bytes, Any]]

_KEYS = ("levels", "keep")


def read_hierarchy(option: str, given: Any) -> tuple[tuple[Any, ...], int]:
    """Levels from coarse to fine, and how many segments of each are refined.

    Args:
        option: The name of the option.
        given: ``{"levels": [...], "keep": 3}``; a level is what ``segments=`` takes, and one that is a text or a
            mapping may stand without a list.

    Returns:
        The levels, and the number.

    Raises:
        InputError: Something else.
        UnknownNameError: A key that means nothing, or no kind of segment.
    """
    example = '{"levels": ["paragraph"], "keep": 3}'
    if not isinstance(given, Mapping):
        raise InputError(f"{option} is a mapping such as {example}, not {given!r:.80}.")
    for key in given:
        if key not in _KEYS:
            raise unknown_name(f"key of {option}:", str(key), _KEYS)
    if len(given) < len(_KEYS):
        raise InputError(f"{option} has the keys levels and keep, such as {example}, not {dict(given)!r:.80}.")
    levels, keep = given["levels"], given["keep"]
    levels = (levels,) if isinstance(levels, str | Mapping) else levels
    if not isinstance(levels, list | tuple) or not levels:
        raise InputError(f"{option}: levels are kinds of segments from coarse to fine, not {levels!r:.80}.")
    for level in levels:
        if isinstance(level, str) and level not in NAMES:
            raise unknown_name("kind of segment", level, NAMES)
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise InputError(f"{option}: keep is a whole number of at least 1, not {keep!r:.80}.")
    return tuple(levels), keep


def refine(probe: Probe, *, removal: Removal, levels: Sequence[Any], keep: int) -> Answer:
    """What the target loses without each feature, for those in the coarse segments without which it loses most.

    Every column chooses for itself, so that its scores do not depend on what else is asked; a row that several
    columns ask for runs once.

    Args:
        probe: Whom to ask.
        removal: How features are removed.
        levels: Kinds of segments, from coarse to fine.
        keep: How many segments of each level are refined.

    Returns:
        The answer. A feature that was not asked about is not defined; ``levels`` and ``skipped`` in the record say
        why: for every column the segments of each level, their scores and whether they were kept, and the features.

    Raises:
        InputError: Several layers are asked about, and would need a choice each; or a level is no partition.
    """
    if probe.layer_labels:
        raise InputError(
            "hierarchical: which segments are refined is chosen for one site, and several layers are asked about. "
            "Ask about one layer at a time."
        )
    partitions = [probe.coarser(level).numpy() for level in levels]
    counted = players(probe)
    asked = np.repeat(counted.any(1, keepdims=True), counted.shape[1], axis=1)
    known: Known = [{} for _ in counted]
    rows = [[np.zeros((1, counted.shape[2]), dtype=bool)] for _ in counted]
    notes: list[list[list[Any]]] = [[[] for _ in columns] for columns in counted]
    for of in partitions:
        parts = [
            [_parts(of[example], *pair) for pair in zip(asked[example], counted[example], strict=True)]
            for example in range(len(counted))
        ]
        _learn(probe, known, [[*first, *found] for first, found in zip(rows, parts, strict=True)], removal)
        for example, columns in enumerate(parts):
            for column, found in enumerate(columns):
                lost = _lost(known[example], found, column)
                inside = found & counted[example, column]
                # Of equal ones the largest: so an estimate, for which all are equal, is not too low.
                kept = np.sort(np.lexsort((-inside.sum(1), -lost))[:keep])
                asked[example, column] = found[kept].any(0)
                notes[example][column].append(_note(inside, lost, kept))
    asked &= counted
    singles = np.eye(counted.shape[2], dtype=bool)
    _learn(probe, known, [[singles[one.any(0)]] for one in asked], removal)
    scores = np.zeros(counted.shape)
    for example, columns in enumerate(asked):
        for column, some in enumerate(columns):
            scores[example, column, some] = _lost(known[example], singles[some], column)
    skipped = counted & ~asked
    answer = make_answer(
        probe,
        scores,
        clean=np.stack([one[first[0].tobytes()] for one, first in zip(known, rows, strict=True)]),
        removal=removal,
        gaps=(_skipped_gap(skipped, counted),),
        each={
            "variants": [len(one) - 1 for one in known],
            "levels": by_step(probe, notes),
            "skipped": by_step(probe, [[np.flatnonzero(some).tolist() for some in columns] for columns in skipped]),
        },
    )
    return _without(answer, skipped)


def _parts(
    of: Int[np.ndarray, " feature"], asked: Bool[np.ndarray, " feature"], counted: Bool[np.ndarray, " feature"]
) -> Bool[np.ndarray, "part feature"]:
    """The segments of a level that have features which a column asks about, as rows."""
    return (of == np.unique(of[asked & counted])[:, None]) & asked


def _learn(probe: Probe, known: Known, wanted: Sequence[Sequence[np.ndarray]], removal: Removal) -> None:
    """Ask for the rows that are not known, those of all examples in one request."""
    rows = []
    for one, parts in zip(known, wanted, strict=True):
        every = np.concatenate(parts)
        rows.append(np.array([row for row in np.unique(every, axis=0) if row.tobytes() not in one], dtype=bool))
        rows[-1] = rows[-1].reshape(-1, every.shape[1])
    if not any(map(len, rows)):
        return
    values = removed_values(probe, rows, removal=removal)
    for one, removed, found in zip(known, rows, values, strict=True):
        one.update(zip((row.tobytes() for row in removed), found, strict=True))


def _lost(
    known: Mapping[bytes, Any], removed: Bool[np.ndarray, "row feature"], column: int
) -> Float[np.ndarray, " row"]:
    """What a column loses in each row."""
    clean = known[bytes(removed.shape[1])][column]
    return np.array([clean - known[row.tobytes()][column] for row in removed])


def _note(
    inside: Bool[np.ndarray, "part feature"], lost: Float[np.ndarray, " part"], kept: Int[np.ndarray, " rank"]
) -> list[dict[str, Any]]:
    """The segments of a level as plain data."""
    return [
        {"features": np.flatnonzero(part).tolist(), "score": float(score), "kept": bool(number in kept)}
        for number, (part, score) in enumerate(zip(inside, lost, strict=True))
    ]


def _skipped_gap(
    skipped: Bool[np.ndarray, "batch column feature"], counted: Bool[np.ndarray, "batch column feature"]
) -> Gap:
    """How much was not asked about."""
    import torch

    share, whole = skipped.sum(-1).astype(float), np.maximum(counted.sum(-1), 1).astype(float)
    note = "share of the features in coarse segments that are not refined; they are NaN"
    return Gap("skipped", torch.from_numpy(share), torch.from_numpy(whole), None, note)


def _without(answer: Answer, skipped: Bool[np.ndarray, "batch column feature"]) -> Answer:
    """The answer with cells that mean nothing."""
    import torch

    known = ~torch.from_numpy(skipped)
    return replace(answer, defined=known if answer.defined is None else answer.defined & known)
