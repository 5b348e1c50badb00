"""Some of the scores: magnitudes, one sign, or the strongest. The others become 0: they are seen, but do not count."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from whence.core.errors import InputError
from whence.scores.aggregation.carrying import OF_CELLS, each_cell
from whence.scores.array import Scores
from whence.scores.attribution import Attribution


def magnitudes(attribution: Attribution) -> Attribution:
    """The magnitudes of the scores."""
    return replace(attribution, scores=attribution.scores.absolute())


def positive(attribution: Attribution) -> Attribution:
    """The positive scores; 0 in place of the others."""
    return _filtered(attribution, each_cell(attribution, lambda values: np.maximum(values, 0.0)))


def negative(attribution: Attribution) -> Attribution:
    """The negative scores, with their sign; 0 in place of the others."""
    return _filtered(attribution, each_cell(attribution, lambda values: np.minimum(values, 0.0)))


def topk(attribution: Attribution, k: int) -> Attribution:
    """For each step (layer, head, unit), the ``k`` scores of largest magnitude; 0 in place of the others.

    Earlier tokens win ties. ``extras["kept"]`` is 1 where a score was kept and 0 where not.

    Args:
        attribution: What to filter.
        k: How many, at least 1.

    Raises:
        InputError: ``k`` is no positive number.
    """
    if type(k) is not int or k < 1:
        raise InputError(f"topk keeps at least one token per step, not {k!r}.")
    scores = attribution.scores
    size = np.where(scores.defined, np.abs(scores.values), -1.0)
    order = np.argsort(-size, axis=1, kind="stable")
    kept = np.argsort(order, axis=1, kind="stable") < k
    mask = replace(scores, values=np.where(scores.defined, kept, np.nan))
    filtered = _filtered(attribution, each_cell(attribution, lambda values: np.where(kept, values, 0.0)))
    return replace(filtered, extras={**filtered.extras, "kept": mask})


def _filtered(attribution: Attribution, scores: Scores) -> Attribution:
    """With other scores, and without what was said about single cells."""
    extras = {name: extra for name, extra in attribution.extras.items() if name not in OF_CELLS}
    return replace(attribution, scores=scores, extras=extras)
