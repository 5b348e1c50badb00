"""Pairs of places in two sequences: from vectors, from what is equal, and from pairs to one partner for each place."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Pair = tuple[int, int]
Partners = tuple[int | None, ...]
Fill = Literal["right", "left", "none"]


def inner_products(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    """All inner products of two lists of vectors.

    Args:
        a: Vectors of one sequence.
        b: Vectors of the other.

    Returns:
        The product of row i of ``a`` with row j of ``b`` at (i, j).
    """
    # Not by a matrix product, whose last bits depend on the place in the matrix: equal vectors must tie exactly, and
    # exchanging the sequences must transpose the result, or argmax would choose by rounding errors.
    rows = [(b * row).sum(axis=-1) for row in a]
    return np.stack(rows) if rows else np.zeros((0, len(b)))


def softmax_pairs(products: Float[np.ndarray, "n m"], threshold: float) -> list[Pair]:
    """Places that each find the other probable: the softmax over the row and over the column exceed a threshold.

    Dou and Neubig 2021 (AWESoME).

    Args:
        products: Inner products, in the embedder's units.
        threshold: A probability.

    Returns:
        The pairs, sorted.
    """
    if not products.size:
        return []
    both = (_softmax(products, axis=1) > threshold) & (_softmax(products, axis=0) > threshold)
    return _pairs(both)


def mutual_pairs(cosines: Float[np.ndarray, "n m"]) -> list[Pair]:
    """Places that are each other's nearest; of equally near ones the first counts.

    Jalili Sabet et al. 2020 (SimAlign), "Argmax".

    Args:
        cosines: Similarities.

    Returns:
        The pairs, sorted; a place has at most one partner.
    """
    if not cosines.size:
        return []
    best_of_row, best_of_column = cosines.argmax(axis=1), cosines.argmax(axis=0)
    return [(i, int(j)) for i, j in enumerate(best_of_row) if best_of_column[j] == i]


def unit_vectors(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Vectors of length 1; those of length 0 stay as they are."""
    lengths = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return vectors / np.where(lengths > 0, lengths, 1)


def diff_pairs(a: Sequence[Hashable], b: Sequence[Hashable]) -> tuple[list[Pair], int]:
    """Pair two sequences as a diff does.

    Equal items of a longest common subsequence are pairs. Between two of them, what one sequence has in place of
    what the other has is paired one by one from the left; what is left over has no partner.

    Args:
        a: Ids or words.
        b: Ids or words.

    Returns:
        The pairs, sorted, and how many of them are of equal items.
    """
    shared = _common_subsequence(a, b)
    pairs: list[Pair] = []
    i = j = 0
    for next_i, next_j in [*shared, (len(a), len(b))]:
        pairs += zip(range(i, next_i), range(j, next_j), strict=False)
        if next_i < len(a):
            pairs.append((next_i, next_j))
        i, j = next_i + 1, next_j + 1
    return pairs, len(shared)


def plain_pairs(a: Sequence[Hashable], b: Sequence[Hashable]) -> tuple[list[Pair], Literal["diff", "right"]]:
    """Pair two sequences without an embedder.

    Args:
        a: Ids or words.
        b: Ids or words.

    Returns:
        The pairs, and the rule: ``"diff"`` (`diff_pairs`) where at least half of the longer sequence is shared in
        order, otherwise ``"right"``: last with last, and so on to the beginning of the shorter one.
    """
    pairs, shared = diff_pairs(a, b)
    if 2 * shared >= max(len(a), len(b)):
        return pairs, "diff"
    shift = len(b) - len(a)
    return [(i, i + shift) for i in range(len(a)) if i + shift >= 0], "right"


def equal_in_order(a: Sequence[tuple[int, Hashable]], b: Sequence[tuple[int, Hashable]]) -> list[Pair]:
    """Pair equal items, the first of a kind with the first of that kind, the second with the second.

    Args:
        a: Places with what stands there.
        b: Places with what stands there.

    Returns:
        Pairs of places, in the order of ``a``.
    """
    waiting: defaultdict[Hashable, deque[int]] = defaultdict(deque)
    for j, item in b:
        waiting[item].append(j)
    return [(i, waiting[item].popleft()) for i, item in a if waiting[item]]


def one_to_one(pairs: Iterable[Pair], count: int) -> Partners:
    """At most one partner for each place: the first that no earlier place has, or else the first.

    Args:
        pairs: Any pairs.
        count: Length of the first sequence.

    Returns:
        For each place of the first sequence a place of the second, or None.
    """
    candidates: defaultdict[int, list[int]] = defaultdict(list)
    for i, j in sorted(set(pairs)):
        candidates[i].append(j)
    used: set[int] = set()
    partners: list[int | None] = []
    for i in range(count):
        found = candidates[i]
        partner = next((j for j in found if j not in used), found[0] if found else None)
        partners.append(partner)
        if partner is not None:
            used.add(partner)
    return tuple(partners)


def increasing(partners: Partners) -> Partners:
    """Keep a longest strictly increasing subsequence of the partners.

    Args:
        partners: For each place its partner, or None.

    Returns:
        The same, with None for the partners that are not in it.
    """
    # Fredman 1975: the smallest end of an increasing subsequence of every length, and what stands before each end.
    ends: list[int] = []
    places: list[int] = []
    before: dict[int, int | None] = {}
    for i, partner in enumerate(partners):
        if partner is None:
            continue
        length = bisect_left(ends, partner)
        ends[length : length + 1] = [partner]
        places[length : length + 1] = [i]
        before[i] = places[length - 1] if length else None
    kept: set[int] = set()
    last = places[-1] if places else None
    while last is not None:
        kept.add(last)
        last = before[last]
    return tuple(partner if i in kept else None for i, partner in enumerate(partners))


def filled(partners: Partners, count: int, fill: Fill) -> Partners:
    """Give places without a partner the one that is as far from the end, or from the beginning.

    Args:
        partners: For each place its partner, or None.
        count: Length of the second sequence.
        fill: ``"right"``: as far from the end, and the first where the second sequence is shorter; ``"left"``: as far
            from the beginning, or the last; ``"none"``: nothing.

    Returns:
        The partners; without gaps unless nothing is filled in or the second sequence is empty.
    """
    if fill == "none" or not count:
        return partners
    shift = count - len(partners)
    if fill == "right":
        return tuple(max(i + shift, 0) if partner is None else partner for i, partner in enumerate(partners))
    return tuple(min(i, count - 1) if partner is None else partner for i, partner in enumerate(partners))


def _softmax(values: Float[np.ndarray, "n m"], axis: int) -> Float[np.ndarray, "n m"]:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _pairs(chosen: Bool[np.ndarray, "n m"]) -> list[Pair]:
    return [(int(i), int(j)) for i, j in np.argwhere(chosen)]


def _common_subsequence(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[Pair]:
    """Places of a longest common subsequence; of several, the one that takes equal items as early as it can."""
    numbers: dict[Hashable, int] = {}
    left = np.array([numbers.setdefault(item, len(numbers)) for item in a], dtype=np.int64)
    right = np.array([numbers.setdefault(item, len(numbers)) for item in b], dtype=np.int64)
    # Longest lengths from (i, j) to the ends. Rows never decrease to the left, so a running maximum completes them.
    longest = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int32)
    for i in reversed(range(len(a))):
        found = np.maximum(longest[i + 1, :-1], longest[i + 1, 1:] + (right == left[i]))
        longest[i, :-1] = np.maximum.accumulate(found[::-1])[::-1]
    pairs: list[Pair] = []
    i = j = 0
    while i < len(a) and j < len(b):
        if left[i] == right[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1, j] >= longest[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs
