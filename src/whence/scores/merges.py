"""How the numbers of several steps become the number of their span: every step score has its own rule.

A rule is a name in `MERGES`, or ``("difference", a, b)``: the merged step score ``a`` less the merged ``b``, for
numbers that do not merge by themselves (a difference of probabilities is no product of differences).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whence.core.errors import InputError, unknown_name

Merge = str | Sequence[str]


def geometric(values: np.ndarray) -> np.ndarray:
    """Geometric mean: of perplexities, the exponential of the mean cross-entropy."""
    with np.errstate(divide="ignore"):
        return np.exp(np.mean(np.log(values), axis=-1))


def log_odds(values: np.ndarray) -> np.ndarray:
    """Log-odds of all events together, from the log-odds of each: ``ln P - ln(1 - P)``, ``P`` the product."""
    together = -np.logaddexp(0.0, -values).sum(-1)
    with np.errstate(divide="ignore"):
        return together - np.log(-np.expm1(together))


MERGES: Mapping[str, Callable[[np.ndarray], Any]] = {
    "geometric": geometric,
    "log_odds": log_odds,
    "max": lambda values: np.max(values, axis=-1),
    "mean": lambda values: np.mean(values, axis=-1),
    "min": lambda values: np.min(values, axis=-1),
    "prod": lambda values: np.prod(values, axis=-1),
    "sum": lambda values: np.sum(values, axis=-1),
}


def check_merge(rule: Merge) -> None:
    """Refuse a rule that does not exist.

    Raises:
        InputError: It is no name and no difference.
        UnknownNameError: No rule has that name.
    """
    if not isinstance(rule, str):
        if len(rule) != 3 or rule[0] != "difference":
            raise InputError(f'a merge rule is a name or ("difference", a, b), not {rule!r}.')
    elif rule not in MERGES:
        raise unknown_name("merge rule", rule, MERGES)


def merge_steps(
    scores: Mapping[str, np.ndarray], rules: Mapping[str, Merge], members: Sequence[Sequence[int]]
) -> dict[str, np.ndarray]:
    """The step scores of spans of steps.

    Args:
        scores: Name -> one number per step.
        rules: Name -> how it merges; a name that is missing has the mean.
        members: For each span, its steps.

    Returns:
        Name -> one number per span, float32. A span of one step keeps its number; a step whose number is not
        defined (NaN) leaves its span without one.

    Raises:
        InputError: A difference needs a step score that is not there.
        UnknownNameError: No rule has that name.
    """
    return {name: _merged(name, scores, rules, members).astype(np.float32) for name in scores}


def _merged(
    name: str, scores: Mapping[str, np.ndarray], rules: Mapping[str, Merge], members: Sequence[Sequence[int]]
) -> np.ndarray:
    rule = rules.get(name, "mean")
    check_merge(rule)
    if not isinstance(rule, str):
        _, first, second = rule
        missing = [part for part in (first, second) if part not in scores]
        if missing and any(len(span) > 1 for span in members):
            raise InputError(f"{name} of a span needs {' and '.join(missing)} as step scores beside it.")
        if not missing:
            return _merged(first, scores, rules, members) - _merged(second, scores, rules, members)
    values = np.asarray(scores[name], dtype=np.float64)
    merge = MERGES[rule] if isinstance(rule, str) else MERGES["mean"]
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array([values[span[0]] if len(span) == 1 else merge(values[list(span)]) for span in members])
