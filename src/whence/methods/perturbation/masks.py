"""Random rows of kept and removed features.

A row's numbers come from a stream of its own, and an example with K features uses the first K of them. So nothing
that is drawn depends on what stands beside an example in its batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from whence.core.random import stream

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


def random_masks(
    seed: int,
    item: str,
    players: Bool[np.ndarray, " feature"],
    count: int,
    *,
    keep_prob: float | None = None,
    antithetic: bool = True,
) -> Bool[np.ndarray, "row feature"]:
    """Rows in which every player is kept with the same probability.

    With a probability that is drawn for each row, uniformly, every number of kept features is as likely as any
    other; and this also holds among the features that one step can see, whichever they are. So rows serve all
    steps.

    Args:
        seed: The user's seed.
        item: What draws.
        players: Which features may be removed; the others are kept.
        count: Number of rows.
        keep_prob: The probability; None draws one for each row.
        antithetic: Every second row keeps what the one before it removes.

    Returns:
        True where a feature is kept.
    """
    kept = np.ones((count, len(players)), dtype=bool)
    for row in range(count):
        if antithetic and row % 2:
            kept[row] = ~kept[row - 1] | ~players
            continue
        numbers = stream(seed, item, row)
        probability = numbers.random() if keep_prob is None else keep_prob
        kept[row] = (numbers.random(len(players)) < probability) | ~players
    return kept


def all_masks(players: Bool[np.ndarray, " feature"]) -> Bool[np.ndarray, "row feature"]:
    """Every subset of the players, from none to all; the other features are kept."""
    where = np.flatnonzero(players)
    kept = np.ones((2 ** len(where), len(players)), dtype=bool)
    kept[:, where] = (np.arange(2 ** len(where))[:, None] >> np.arange(len(where))) & 1
    return kept


def with_ends(
    kept: Bool[np.ndarray, "row feature"], players: Bool[np.ndarray, " feature"]
) -> Bool[np.ndarray, "row feature"]:
    """Rows after one that keeps every feature, and one that removes all players."""
    return np.concatenate([np.ones((1, len(players)), dtype=bool), ~players[None], kept])


def clusters(count: int, *, antithetic: bool, first: int = 0) -> Int[np.ndarray, " row"]:
    """Which rows were drawn together: rows of one cluster are not independent.

    Args:
        count: Number of rows.
        antithetic: Whether rows come in pairs.
        first: How many rows before the drawn ones form a cluster of their own.

    Returns:
        The number of each row's cluster.
    """
    drawn = np.arange(count - first) // (2 if antithetic else 1)
    return np.concatenate([np.zeros(first, dtype=int), drawn + (first > 0)])
