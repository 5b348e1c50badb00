"""Pairs of places, each rule against the plainest way to write it."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.text.pairing import (
    diff_pairs,
    equal_in_order,
    filled,
    increasing,
    inner_products,
    mutual_pairs,
    one_to_one,
    plain_pairs,
    softmax_pairs,
    unit_vectors,
)

ids = st.lists(st.integers(0, 3), max_size=7)
partners = st.lists(st.none() | st.integers(0, 6), max_size=9).map(tuple)
# Whole numbers, so that ties are frequent.
matrices = st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(-6, 6), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


def subsequences(items):
    return [chosen for size in range(len(items) + 1) for chosen in combinations(range(len(items)), size)]


@given(rows=matrices, threshold=st.sampled_from([1e-3, 0.05, 0.3]))
def test_softmax_pairs_give_each_other_more_than_the_threshold(rows, threshold):
    expected = []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            column = [other[j] for other in rows]
            of_row = math.exp(value) / sum(math.exp(x) for x in row)
            of_column = math.exp(value) / sum(math.exp(x) for x in column)
            if of_row > threshold and of_column > threshold:
                expected.append((i, j))
    assert softmax_pairs(np.array(rows, float), threshold) == expected


def test_softmax_of_large_products_is_finite():
    assert softmax_pairs(np.array([[2000.0, 0.0], [0.0, 1999.0]]), 1e-3) == [(0, 0), (1, 1)]


@given(rows=matrices)
def test_mutual_pairs_are_the_nearest_of_each_other(rows):
    expected = []
    for i, row in enumerate(rows):
        j = row.index(max(row))
        column = [other[j] for other in rows]
        if column.index(max(column)) == i:
            expected.append((i, j))
    assert mutual_pairs(np.array(rows, float)) == expected


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_nothing_has_no_pairs(shape):
    assert softmax_pairs(np.zeros(shape), 1e-3) == mutual_pairs(np.zeros(shape)) == []
    assert inner_products(np.zeros((shape[0], 2)), np.zeros((shape[1], 2))).shape == shape


@given(seed=st.integers(0, 999), n=st.integers(1, 9), m=st.integers(1, 9), d=st.integers(1, 70))
def test_products_do_not_depend_on_the_place(seed, n, m, d):
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(n, d)), draw.normal(size=(m, d))
    found = inner_products(a, b)
    np.testing.assert_allclose(found, a @ b.T, rtol=1e-12, atol=1e-12)
    assert (inner_products(b, a) == found.T).all()
    assert (inner_products(a, np.concatenate([b, b]))[:, m:] == found).all()


def test_unit_vectors_leave_zeros():
    np.testing.assert_allclose(unit_vectors(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]])


@given(a=ids, b=ids)
def test_diff_keeps_a_longest_common_subsequence(a, b):
    pairs, shared = diff_pairs(a, b)
    in_b = {tuple(b[j] for j in chosen) for chosen in subsequences(b)}
    longest = max(len(chosen) for chosen in subsequences(a) if tuple(a[i] for i in chosen) in in_b)
    assert shared == longest
    assert sum(a[i] == b[j] for i, j in pairs) >= longest
    # One to one, in order.
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("axxb", "ayb", [(0, 0), (1, 1), (3, 2)]),  # the second x is left over
        ("ab", "axyb", [(0, 0), (1, 3)]),
        ("xxa", "ya", [(0, 0), (2, 1)]),
        ("axx", "ay", [(0, 0), (1, 1)]),
        ("xx", "yyy", [(0, 0), (1, 1)]),
        ("", "yyy", []),
        ("aab", "ab", [(0, 0), (2, 1)]),
    ],
)
def test_diff_pairs_what_is_replaced_from_the_left(a, b, expected):
    assert diff_pairs(a, b)[0] == expected


@given(a=ids)
def test_diff_with_itself_is_the_identity(a):
    assert diff_pairs(a, a) == ([(k, k) for k in range(len(a))], len(a))


@pytest.mark.parametrize(
    ("a", "b", "rule", "expected"),
    [
        ("abxx", "abyy", "diff", [(0, 0), (1, 1), (2, 2), (3, 3)]),  # half
        ("abx", "abyyy", "right", [(0, 2), (1, 3), (2, 4)]),  # 2 of 5
        ("axxx", "ay", "right", [(2, 0), (3, 1)]),
        ("", "", "diff", []),
        ("", "a", "right", []),
    ],
)
def test_without_an_embedder_half_of_the_longer_must_be_shared(a, b, rule, expected):
    assert plain_pairs(a, b) == (expected, rule)


def test_equal_items_pair_up_in_order():
    a = [(0, "s"), (3, "\n"), (5, "s"), (9, "e")]
    b = [(1, "e"), (2, "s"), (4, "s"), (6, "s")]
    assert equal_in_order(a, b) == [(0, 2), (5, 4), (9, 1)]


@given(pairs=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4))), count=st.just(5))
def test_one_partner_each_the_first_that_is_free(pairs, count):
    found = one_to_one(pairs, count)
    for i in range(count):
        candidates = [j for j in range(5) if (i, j) in pairs]
        free = [j for j in candidates if j not in found[:i]]
        assert found[i] == (free[0] if free else candidates[0] if candidates else None)


@given(found=partners)
def test_increasing_is_a_longest_increasing_subsequence(found):
    kept = increasing(found)
    assert all(one in (None, other) for one, other in zip(kept, found, strict=True))
    numbers = [one for one in kept if one is not None]
    assert all(one < other for one, other in pairwise(numbers))
    given_ones = [one for one in found if one is not None]
    tried = [[given_ones[k] for k in chosen] for chosen in subsequences(given_ones)]
    assert len(numbers) == max(len(one) for one in tried if one == sorted(set(one)))


@given(found=partners, count=st.integers(0, 9))
def test_gaps_are_filled_from_the_side_that_is_asked_for(found, count):
    right, left = filled(found, count, "right"), filled(found, count, "left")
    assert filled(found, count, "none") == found
    for place, partner in enumerate(found):
        from_end = len(found) - place
        if partner is not None or count == 0:
            assert right[place] == left[place] == partner
        else:
            assert right[place] == (count - from_end if from_end <= count else 0)
            assert left[place] == (place if place < count else count - 1)
