"""How high a ranking of tokens puts those that are known to matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


def gold_rank(scores: Sequence[float], gold: Sequence[int], candidates: Sequence[int]) -> int:
    """Rank of the best gold token among the candidates, 1 for the highest score.

    On a tie the gold token comes last, so that scores that are all equal gain nothing.

    Args:
        scores: One number per token.
        gold: Tokens that decide the step.
        candidates: Tokens that are ranked.

    Raises:
        ValueError: No gold token is a candidate.
    """
    known = set(gold) & set(candidates)
    if not known:
        raise ValueError(f"none of the gold tokens {sorted(gold)} is a candidate")
    best = max(scores[k] for k in known)
    return 1 + sum(scores[k] >= best for k in candidates if k not in known)


def top_share(ranks: Sequence[Sequence[int]], k: int, seed: int = 0) -> Interval:
    """Share of steps whose gold token is among the first ``k``.

    Args:
        ranks: Ranks of the steps of every example.
        k: How many count as the top.
        seed: Seed of the bootstrap.
    """
    return _bootstrapped([[float(rank <= k) for rank in example] for example in ranks], seed)


def mean_reciprocal_rank(ranks: Sequence[Sequence[int]], seed: int = 0) -> Interval:
    """Mean of one over the rank.

    Args:
        ranks: Ranks of the steps of every example.
        seed: Seed of the bootstrap.
    """
    return _bootstrapped([[1 / rank for rank in example] for example in ranks], seed)


def _bootstrapped(values: Sequence[Sequence[float]], seed: int) -> Interval:
    """Mean over all steps; whole examples are drawn again, because the steps of one example are alike."""
    sums = np.array([sum(example) for example in values], dtype=float)
    counts = np.array([len(example) for example in values], dtype=float)
    if not counts.sum():
        raise ValueError("there are no steps to take a mean of")
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    totals = counts[drawn].sum(1)
    means = (sums[drawn].sum(1) / np.where(totals, totals, 1))[totals > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))
