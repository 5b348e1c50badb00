"""What one result has more than another: ``first - second``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from whence.core.errors import InputError
from whence.core.tokens import Token
from whence.scores.array import Axis, Scores
from whence.scores.attribution import Attribution
from whence.scores.plain import plain


def difference(first: Attribution, second: Attribution) -> Attribution:
    """First minus second, cell by cell and step score by step score.

    Args:
        first: What to subtract from.
        second: What to subtract: same axes, same numbers of tokens and steps, same defined cells.

    Returns:
        The differences. Where tokens differ their text is ``"x -> y"``; step scores that both have are subtracted;
        further scores are left out; checks are those of both; the operator in ``info["ops"]`` holds the
        provenance of the second.

    Raises:
        InputError: The two do not fit together.
    """
    mine, theirs = first.scores, second.scores
    if mine.names != theirs.names or mine.shape != theirs.shape:
        raise InputError(f"cannot subtract: {mine!r} and {theirs!r} have different axes; merge or select first.")
    if [token.side for token in first.tokens] != [token.side for token in second.tokens]:
        raise InputError("cannot subtract: the two have different numbers of source tokens.")
    for one, other in zip(mine.axes[2:], theirs.axes[2:], strict=True):
        if one.labels != other.labels:
            raise InputError(f"cannot subtract: the axis {one.name} has different labels; select the same ones.")
    if not np.array_equal(mine.defined, theirs.defined):
        raise InputError("cannot subtract: some cells are defined in only one of the two.")
    tokens, steps = _paired(first.tokens, second.tokens), _paired(first.steps, second.steps)
    axes = (Axis("step", tuple(t.text for t in steps)), Axis("token", tuple(t.text for t in tokens)), *mine.axes[2:])
    with np.errstate(invalid="ignore"):
        step_scores = {
            name: row - second.step_scores[name]
            for name, row in first.step_scores.items()
            if name in second.step_scores
        }
    record = {"op": "difference", "args": {}, "minus": plain(second.info)}
    return replace(
        first,
        scores=Scores(mine.values.astype(np.float64) - theirs.values, axes),
        tokens=tokens,
        steps=steps,
        step_scores=step_scores,
        checks=(*first.checks, *second.checks),
        # A difference of lengths is no length: it has a sign, and several of them add up.
        info={**first.info, "signed": True, "join": "sum", "ops": (*first.info.get("ops", ()), record)},
        extras={},
    )


def _paired(first: tuple[Token, ...], second: tuple[Token, ...]) -> tuple[Token, ...]:
    return tuple(
        one
        if (one.text, one.id) == (other.text, other.id)
        else replace(one, text=f"{one.text} -> {other.text}", ids=(*one.all_ids, *other.all_ids))
        for one, other in zip(first, second, strict=True)
    )
