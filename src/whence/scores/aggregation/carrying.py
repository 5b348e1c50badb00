"""What changes together: scores, the tokens and steps of their axes, step scores, and further scores.

Further scores (``extras``) that lie on the same axis, with the same labels, are treated as the scores are; others
stay as they are. Standard errors and marks of single cells can be selected, but they do not merge: the error of
a sum needs covariances that nobody has. They are left out then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from whence.core.errors import InputError
from whence.core.tokens import Token, join_tokens
from whence.scores.array import WHOLE_AXES, Axis, How, Scores
from whence.scores.attribution import Attribution
from whence.scores.merges import merge_steps

# The token axis as a whole or one side of it, and the axes of score arrays.
AXES = ("step", "token", "source", "prefix", "layer", "head", "unit")
SIDES = ("source", "prefix")
OF_CELLS = frozenset({"standard_error", "kept"})


def located(attribution: Attribution, axis: str) -> tuple[str, list[int]]:
    """The axis of the scores that a name stands for, and the entries that it covers.

    Raises:
        InputError: These scores have no such axis; the message names those they have.
    """
    names = attribution.scores.names
    name = "token" if axis in SIDES else axis
    if name not in names:
        raise InputError(
            f"these scores have no axis {axis!r}; they have {', '.join(names)}, and source and prefix are the two "
            "sides of token."
        )
    if axis not in SIDES:
        return name, list(range(len(attribution.scores.axis(name))))
    return name, [k for k, token in enumerate(attribution.tokens) if token.side == axis]


def without(attribution: Attribution, axis: str, change: Callable[[Scores], Scores], *, cells: bool) -> Attribution:
    """The attribution without an axis of layers, heads or units.

    Args:
        attribution: What to change.
        axis: The axis that goes.
        change: Takes scores with that axis and returns them without it.
        cells: Whether numbers about single cells can be treated alike.
    """
    return replace(
        attribution, scores=change(attribution.scores), extras=_extras(attribution, axis, change, cells=cells)
    )


def take(attribution: Attribution, axis: str, positions: Sequence[int]) -> Attribution:
    """The attribution with some entries of an axis, in that order."""
    keep = list(positions)

    def change(scores: Scores) -> Scores:
        return scores.select(axis, keep)

    changed: dict[str, Any] = {}
    if axis == "step":
        changed["steps"] = tuple(attribution.steps[k] for k in keep)
        changed["step_scores"] = {name: row[keep] for name, row in attribution.step_scores.items()}
    elif axis == "token":
        changed["tokens"] = tuple(attribution.tokens[k] for k in keep)
    extras = _extras(attribution, axis, change, cells=True)
    return replace(attribution, scores=change(attribution.scores), extras=extras, **changed)


def join(
    attribution: Attribution, axis: str, groups: Sequence[Sequence[int]], how: How, *, untouched: Collection[int] = ()
) -> Attribution:
    """The attribution with the entries of every group of an axis made one.

    Along steps and tokens the defined scores of a group are reduced; where there is none, the result is not
    defined. Step scores merge by their own rules, ``info["merges"]``.

    Args:
        attribution: What to change.
        axis: ``"step"``, ``"token"`` or another axis of the scores.
        groups: Positions, each in one group, ordered by their first.
        how: How the scores of a group become one.
        untouched: Positions that stay as they are, each a group of its own.
    """
    labels: tuple[str, ...] | None = None
    changed: dict[str, Any] = {}
    if axis == "step":
        changed["steps"] = tuple(joined([attribution.steps[k] for k in group]) for group in groups)
        rules = attribution.info.get("merges", {})
        changed["step_scores"] = merge_steps(attribution.step_scores, rules, groups)
        labels = tuple(step.text for step in changed["steps"])
    elif axis == "token":
        changed["tokens"] = tuple(joined([attribution.tokens[k] for k in group]) for group in groups)
        labels = tuple(token.text for token in changed["tokens"])

    def change(scores: Scores) -> Scores:
        return _joined_scores(scores, axis, groups, how, labels, untouched)

    extras = _extras(attribution, axis, change, cells=False)
    return replace(attribution, scores=change(attribution.scores), extras=extras, **changed)


def joined(members: Sequence[Token]) -> Token:
    """The entry that stands for several tokens. One of both sides counts as the side it begins on."""
    if len(members) == 1:
        return members[0]
    visible = [token for token in members if not token.special] or members
    segments = {token.segment for token in members}
    return join_tokens(
        members,
        "".join(token.text for token in visible),
        segment=segments.pop() if len(segments) == 1 else members[0].side,
        special=all(token.special for token in members),
        fixed=all(token.fixed for token in members),
    )


def each_cell(attribution: Attribution, change: Callable[[np.ndarray], np.ndarray]) -> Scores:
    """The scores with every defined cell changed; cells that are not defined stay so."""
    values = attribution.scores.values.astype(np.float64)
    return replace(attribution.scores, values=np.where(np.isnan(values), np.nan, change(values)))


def _joined_scores(
    scores: Scores,
    axis: str,
    groups: Sequence[Sequence[int]],
    how: How,
    labels: tuple[str, ...] | None,
    untouched: Collection[int],
) -> Scores:
    place, old = scores.index(axis), scores.axis(axis)
    texts = labels or tuple(("+" if axis in WHOLE_AXES else "").join(old.labels[k] for k in one) for one in groups)
    columns = [
        np.take(scores.values, group[0], axis=place)
        if group[0] in untouched
        else scores.select(axis, list(group)).reduce(axis, how).values
        for group in groups
    ]
    values = np.stack(columns, axis=place) if columns else np.take(scores.values, [], axis=place)
    return Scores(values, (*scores.axes[:place], Axis(axis, texts), *scores.axes[place + 1 :]))


def _extras(
    attribution: Attribution, axis: str, change: Callable[[Scores], Scores], *, cells: bool
) -> dict[str, Scores]:
    labels = attribution.scores.axis(axis).labels
    found: dict[str, Scores] = {}
    for name, extra in attribution.extras.items():
        # In a copied text the steps may have the labels of the source, which stands on both axes of encoder_self.
        own = name == "encoder_self" and axis in ("step", "token")
        if own or axis not in extra.names or extra.axis(axis).labels != labels:
            found[name] = extra
        elif cells or name not in OF_CELLS:
            found[name] = change(extra)
    return found
