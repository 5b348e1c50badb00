"""Operators on results: each makes a new `Attribution` from one, and `aggregate` applies and records them."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, TypeVar

from whence.core.errors import InputError
from whence.core.registry import Registry
from whence.scores.aggregation.carrying import AXES

Function = TypeVar("Function", bound=Callable[..., Any])

AGGREGATORS = Registry(
    "aggregator",
    "whence.aggregators",
    {
        "abs": "whence.scores.aggregation.filters:magnitudes",
        "merge": "whence.scores.aggregation.merging:merge",
        "negative": "whence.scores.aggregation.filters:negative",
        "normalize": "whence.scores.aggregation.scaling:normalize",
        "positive": "whence.scores.aggregation.filters:positive",
        "reduce": "whence.scores.aggregation.axes:reduce",
        "rescale": "whence.scores.aggregation.scaling:rescale",
        "select": "whence.scores.aggregation.axes:select",
        "slice": "whence.scores.aggregation.axes:cut",
        "split": "whence.scores.aggregation.merging:split",
        "topk": "whence.scores.aggregation.filters:topk",
        "undo": "whence.scores.aggregation.scaling:undo",
        "weight": "whence.scores.aggregation.scaling:weight",
        "words": "whence.scores.aggregation.merging:words",
    },
)


def aggregator(name: str, *, overwrite: bool = False) -> Callable[[Function], Function]:
    """Register an operator of your own under a name, for objects, lists and texts alike.

    Args:
        name: What it is called: a word.
        overwrite: Replace an operator of the same name.

    Returns:
        A decorator for a function of an attribution, and of further arguments that are plain data, that returns a
        new attribution. The function itself is unchanged.

    Raises:
        InputError: The name is no word, is an axis or is taken, or the function takes ``*args`` or ``**kwargs``.

    Examples:
        >>> @whence.aggregator("times")
        ... def times(attribution, factor=2.0):
        ...     return dataclasses.replace(attribution, scores=attribution.scores.scale(factor))
        >>> out.aggregate("times:3")
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in AXES:
        raise InputError(f"an aggregator's name is a word that is not the name of an axis, not {name!r}.")

    def add(function: Function) -> Function:
        kinds = [parameter.kind for parameter in signature(function).parameters.values()]
        if not kinds or {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD} & set(kinds):
            raise InputError(f"aggregator {name!r} must take an attribution and arguments that have names.")
        AGGREGATORS.add(name, function, overwrite=overwrite)
        return function

    return add
