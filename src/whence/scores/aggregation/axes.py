"""Fewer axes, or fewer entries of one: `reduce`, `select` and `cut`."""

from __future__ import annotations

from typing import Any

from whence.core.errors import InputError
from whence.scores.aggregation.carrying import join, located, take, without
from whence.scores.array import Axis, How, Index, positions_of
from whence.scores.attribution import Attribution
from whence.scores.reducers import resolve


def reduce(attribution: Attribution, axis: str, how: How, ord: Any = None) -> Attribution:  # noqa: A002
    """Turn the scores along an axis into one.

    Axes of layers, heads and units go. Steps, tokens or those of one side become one entry that stands for all of
    them; only defined scores are reduced, and the mean divides by their number.

    Args:
        attribution: What to reduce.
        axis: ``step``, ``token``, ``source``, ``prefix``, ``layer``, ``head`` or ``unit``.
        how: A reducer's name, or a function that takes an array and ``axis=``.
        ord: Order of the norm, for ``lp``.

    Raises:
        InputError: These scores have no such axis or nothing on it, or the reducer does not take ``ord``.
        UnknownNameError: No such reducer.
    """
    options = {} if ord is None else {"ord": ord}
    name, members = located(attribution, axis)
    if name not in ("step", "token"):
        return without(attribution, name, lambda scores: scores.reduce(name, how, **options), cells=False)
    if not members:
        raise InputError(f"there is no {axis} to reduce.")
    others = set(range(len(attribution.scores.axis(name)))) - set(members)
    groups = sorted([members, *([k] for k in others)])
    return join(attribution, name, groups, resolve(how, options), untouched=others)


def select(attribution: Attribution, axis: str, index: Index) -> Attribution:
    """Keep some entries of an axis.

    Args:
        attribution: What to select from.
        axis: ``step``, ``token``, ``source``, ``prefix`` (the other side stays), ``layer``, ``head`` or ``unit``.
        index: A position or a label, or several. A single layer, head or unit drops its axis; a single step or
            token does not. Negative positions count from the end.

    Raises:
        InputError: No such axis, a position outside it, one given twice, or a label that several entries have.
        UnknownNameError: A label that no entry has.
    """
    name, members = located(attribution, axis)
    labels = attribution.scores.axis(name).labels
    part = Axis(name, tuple(labels[k] for k in members))
    single = isinstance(index, str) or not hasattr(index, "__len__")
    chosen = positions_of(part, [index] if single else list(index))  # type: ignore[arg-type]
    keep = [members[k] for k in chosen]
    if single and name not in ("step", "token"):
        return without(attribution, name, lambda scores: scores.select(name, keep[0]), cells=True)
    return _kept(attribution, axis, name, members, keep)


def cut(attribution: Attribution, axis: str, start: int | None = None, stop: int | None = None) -> Attribution:
    """Keep a stretch of an axis, as Python slices do: open and negative bounds, the end exclusive.

    Args:
        attribution: What to cut.
        axis: ``step``, ``token``, ``source``, ``prefix`` (the other side stays), ``layer``, ``head`` or ``unit``.
        start: First entry.
        stop: One past the last.

    Raises:
        InputError: No such axis, a bound that is no number, or nothing within the bounds.
    """
    name, members = located(attribution, axis)
    if any(bound is not None and type(bound) is not int for bound in (start, stop)):
        raise InputError(f"the bounds of a slice are whole numbers, not {start!r} and {stop!r}.")
    keep = members[start:stop]
    if not keep:
        bounds = ":".join("" if bound is None else str(bound) for bound in (start, stop))
        raise InputError(f"the slice {bounds} of {axis} is empty; there are {len(members)} entries.")
    return _kept(attribution, axis, name, members, keep)


def _kept(attribution: Attribution, axis: str, name: str, members: list[int], keep: list[int]) -> Attribution:
    """The chosen entries; of a side, with all of the other side."""
    if axis == "source":
        keep = [*keep, *range(len(members), len(attribution.tokens))]
    elif axis == "prefix":
        keep = [*range(len(attribution.tokens) - len(members)), *keep]
    return take(attribution, name, keep)
