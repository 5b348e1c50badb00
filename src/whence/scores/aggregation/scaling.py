"""Scores in other units: `normalize` and `rescale`, which `undo` takes back, and `weight`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from whence.core.errors import InputError, NonFiniteScore, unknown_name
from whence.scores.aggregation.carrying import located
from whence.scores.array import Scores
from whence.scores.attribution import Attribution
from whence.scores.plain import plain
from whence.scores.reducers import reduce_defined, resolve

_SIZES = {"l1": "l1", "l2": "l2", "sum": "sum", "max": "absmax"}
_SCALINGS = ("normalize", "rescale")


def normalize(attribution: Attribution, kind: str = "l1", over: str = "token") -> Attribution:
    """Divide the scores of every step by their size, so that steps can be compared.

    Layers and heads are normalised each by itself. A step whose scores are all 0 keeps them. What was divided by
    stays in ``info["factors"]``, with the steps (layers, heads) that are all 0.

    Args:
        attribution: What to normalise.
        kind: The size: ``l1`` (sum of magnitudes), ``sum`` (keeps signs), ``l2`` or ``max`` (largest magnitude).
        over: What it is the size of: ``token``, all of source and generated prefix together, or only the ``source``
            or ``prefix``. All scores of the step are divided by it, whatever it is the size of.

    Raises:
        UnknownNameError: No such kind or side.
        InputError: There are units still, or a sum is 0 although scores are not.
    """
    if kind not in _SIZES:
        raise unknown_name("kind of normalize", str(kind), _SIZES)
    if over not in ("token", "source", "prefix"):
        raise unknown_name("part of the tokens", str(over), ("token", "source", "prefix"))
    scores = attribution.scores
    if "unit" in scores.names:
        raise InputError("normalize has no meaning for single units; reduce them first, such as unit:sum.")
    part = scores.values[:, located(attribution, over)[1]].astype(np.float64)
    sizes = np.nan_to_num(reduce_defined(part, 1, resolve(_SIZES[kind], {}), whole=False))
    sizes = sizes if kind == "sum" else np.abs(sizes)
    empty = (np.nan_to_num(part) == 0).all(axis=1)
    if (void := (sizes == 0) & ~empty).any():
        step = int(np.argwhere(void)[0][0])
        raise InputError(f"the scores of step {step} cancel to a sum of 0; normalise by l1, l2 or max.")
    seen = attribution.scores.defined.any(axis=1)
    return _divided(attribution, "normalize", np.where(empty, 1.0, sizes), zero=np.argwhere(empty & seen))


def rescale(attribution: Attribution) -> Attribution:
    """Divide all scores by the largest magnitude among them, which stays in ``info["factors"]``."""
    values = np.abs(attribution.scores.values[attribution.scores.defined])
    peak = float(values.max(initial=0.0)) or 1.0
    return _divided(attribution, "rescale", np.full((1,) * (attribution.scores.values.ndim - 1), peak))


def undo(attribution: Attribution) -> Attribution:
    """Take back the last operator, which must be ``normalize`` or ``rescale``.

    Raises:
        InputError: The last operator was another one, or there was none.
    """
    ops, factors = attribution.info.get("ops", ()), attribution.info.get("factors", ())
    last = ops[-1]["op"] if ops else "none"
    if last not in _SCALINGS or not factors:
        raise InputError(f"undo takes back {' or '.join(_SCALINGS)}, but the last operator is {last}.")
    by = np.array(plain(factors[-1]["values"]), dtype=np.float64)
    return replace(_scaled(attribution, lambda values: values * by), info={**attribution.info, "factors": factors[:-1]})


def weight(attribution: Attribution, step_score: str) -> Attribution:
    """Multiply the scores of every step by one of its step scores; a step without one (NaN) loses its scores.

    Args:
        attribution: What to weigh.
        step_score: Name of the step score, such as ``probability``.

    Raises:
        UnknownNameError: The attribution has no such step score.
        NonFiniteScore: The step score is infinite.
    """
    if step_score not in attribution.step_scores:
        raise unknown_name("step score of this attribution", str(step_score), attribution.step_scores)
    row = attribution.step_scores[step_score].astype(np.float64)
    if np.isinf(row).any():
        raise NonFiniteScore(f"the step score {step_score} of step {int(np.isinf(row).argmax())} is infinite.")
    by = row.reshape(-1, *(1,) * (attribution.scores.values.ndim - 2))
    return _scaled(attribution, lambda values: values * by)


def _divided(attribution: Attribution, op: str, by: np.ndarray, zero: np.ndarray | None = None) -> Attribution:
    record = {"op": op, "values": by.tolist(), "zero": [] if zero is None else zero.tolist()}
    info = {**attribution.info, "factors": (*attribution.info.get("factors", ()), record)}
    return replace(_scaled(attribution, lambda values: values / by), info=info)


def _scaled(attribution: Attribution, change: Any) -> Attribution:
    """The scores, and those further scores that lie on the same axes, changed by factors per step, layer and head.

    A factor counts as known: standard errors are scaled as the scores are. Numbers per step that have other axes
    would be left in the old unit, so they are left out.
    """
    place = attribution.scores.index("token")

    def changed(scores: Scores) -> Scores:
        moved = np.moveaxis(scores.values.astype(np.float64), place, 0)
        return replace(scores, values=np.moveaxis(change(moved), 0, place))

    axes = attribution.scores.axes
    extras: dict[str, Scores] = {}
    for name, extra in attribution.extras.items():
        if extra.axes == axes:
            extras[name] = extra if name == "kept" else changed(extra)
        elif name == "encoder_self":
            extras[name] = extra
    return replace(attribution, scores=changed(attribution.scores), extras=extras)
