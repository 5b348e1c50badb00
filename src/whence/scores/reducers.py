"""Ways to turn many scores into one, and the rule for scores that do not exist.

A reducer is a plain function ``f(values, axis, **options)`` and knows nothing about NaN: `reduce_defined`
hands it defined scores only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
from jaxtyping import Bool

from whence.core.errors import InputError, NonFiniteScore, unknown_name

Reducer = Callable[..., Any]


def mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Arithmetic mean."""
    return np.mean(values, axis=axis)


def maximum(values: np.ndarray, axis: int) -> np.ndarray:
    """Largest value."""
    return np.max(values, axis=axis)


def minimum(values: np.ndarray, axis: int) -> np.ndarray:
    """Smallest value."""
    return np.min(values, axis=axis)


def total(values: np.ndarray, axis: int) -> np.ndarray:
    """Sum: keeps completeness of methods whose scores add up to a difference."""
    return np.sum(values, axis=axis)


def product(values: np.ndarray, axis: int) -> np.ndarray:
    """Product."""
    return np.prod(values, axis=axis)


def absmax(values: np.ndarray, axis: int) -> np.ndarray:
    """The value of largest magnitude with its sign; among equals, the one of lowest index."""
    strongest = np.expand_dims(np.argmax(np.abs(values), axis=axis), axis)
    return np.take_along_axis(values, strongest, axis=axis).squeeze(axis)


def l1(values: np.ndarray, axis: int) -> np.ndarray:
    """Sum of magnitudes."""
    return np.sum(np.abs(values), axis=axis)


def l2(values: np.ndarray, axis: int) -> np.ndarray:
    """Euclidean length."""
    return np.sqrt(np.sum(np.square(values), axis=axis))


def lp(values: np.ndarray, axis: int, ord: float = 2.0) -> np.ndarray:  # noqa: A002 - numpy's name
    """Length in the norm of order ``ord`` (positive; infinity gives the largest magnitude)."""
    if not ord > 0:
        raise InputError(f"the order of a norm must be positive, not {ord}.")
    return np.linalg.norm(values, ord=ord, axis=axis)


REDUCERS: Mapping[str, Reducer] = {
    "mean": mean,
    "max": maximum,
    "min": minimum,
    "sum": total,
    "prod": product,
    "absmax": absmax,
    "l1": l1,
    "l2": l2,
    "vnorm": l2,
    "lp": lp,
}


def resolve(how: str | Reducer, options: Mapping[str, Any]) -> Reducer:
    """The function behind a reducer's name, with its options bound.

    Args:
        how: A name in `REDUCERS`, or any function that takes ``axis=``.
        options: Keyword arguments for the function.

    Raises:
        UnknownNameError: No reducer has that name.
        InputError: The reducer does not take one of the options, or is neither a name nor a function.
    """
    if not isinstance(how, str):
        if not callable(how):
            raise InputError(f"a reducer is a name or a function, not {how!r}.")
        return partial(how, **options)
    if how not in REDUCERS:
        raise unknown_name("reducer", how, REDUCERS)
    function = REDUCERS[how]
    for option in options:
        if option not in list(signature(function).parameters)[2:]:
            raise InputError(f"reducer {how!r} takes no option {option!r}.")
    return partial(function, **options)


def reduce_defined(values: np.ndarray, axis: int, function: Reducer, *, whole: bool) -> np.ndarray:
    """Remove one axis by reducing, along every line of the array, the scores that are defined.

    Args:
        values: Scores; NaN where a score is not defined.
        axis: Number of the axis to remove.
        function: Takes a two-dimensional float64 array without NaN and ``axis=-1``.
        whole: The lines must be entirely defined or entirely undefined.

    Returns:
        Float64 array without that axis; NaN where a line has no defined score.

    Raises:
        InputError: A line is partly defined although ``whole``, or the function does not reduce.
        NonFiniteScore: Defined scores gave NaN or infinity.
    """
    moved = np.moveaxis(values, axis, -1)
    result = np.full(moved.shape[:-1], np.nan)
    if not values.size:
        return result
    lines, result = moved.reshape(-1, moved.shape[-1]), result.reshape(-1)
    defined = ~np.isnan(lines)
    if whole and len(partly := np.flatnonzero(defined.any(axis=1) != defined.all(axis=1))):
        raise InputError(
            f"a cell has {defined[partly[0]].sum()} defined scores of {lines.shape[1]}; "
            "a step either sees a token in every layer, head and unit, or in none."
        )
    for rows, members in _groups(defined):
        with np.errstate(over="ignore", invalid="ignore"):
            reduced = np.asarray(function(lines[np.ix_(rows, members)].astype(np.float64), axis=-1))
        if reduced.shape != rows.shape:
            raise InputError(
                f"a reducer must return one number per line: {len(rows)} lines gave shape {reduced.shape}."
            )
        if not np.isfinite(reduced).all():
            raise NonFiniteScore("reducing defined scores gave NaN or infinity.")
        result[rows] = reduced
    return result.reshape(moved.shape[:-1])


def _groups(defined: Bool[np.ndarray, "line member"]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Lines that share their defined members, so that a reducer runs once per pattern and not per line."""
    if defined.all():
        everything = np.arange(len(defined)), np.arange(defined.shape[1])
        return [everything]
    packed = np.packbits(defined, axis=1)
    _, first, group = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(group, kind="stable")
    bounds = np.cumsum(np.bincount(group))[:-1]
    found = [(rows, np.flatnonzero(defined[first[k]])) for k, rows in enumerate(np.split(order, bounds))]
    return [(rows, members) for rows, members in found if len(members)]
