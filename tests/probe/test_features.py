"""What a method may know of features: who can be removed, who is looked at from outside, where they are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import whence
from removal_rows import Rows, asked, respond
from tiny_models import tiny_model
from whence.probe.features import coarser_features

PROMPT, CONTINUATION = [7, 21, 9], [17, 8]


def probe(family="gpt2", removal="replace", texts=((PROMPT, CONTINUATION),), **options):
    model = whence.load(tiny_model(family))
    masks = [torch.zeros(1, 1, dtype=torch.bool)] * len(texts)
    respond(model, texts, masks, Rows(removal), **options)
    return asked["probe"]


def test_a_step_looks_from_outside_at_all_but_what_it_is_read_from():
    # Steps are read from positions 2 and 3.
    assert probe().outside[0].tolist() == [[True, True, False, False], [True, True, True, False]]
    assert probe(steps=[(0, 2)]).outside[0].tolist() == [[True, True, True, False]]
    assert probe(segments=[[1, 2]]).outside[0].tolist() == [[True, False, False], [True, True, False]]
    source, prefix = [True] * 3, [[False, False], [True, False]]
    assert probe("t5").outside[0].tolist() == [[*source, *row] for row in prefix]


def test_sequences_of_different_length_have_their_own_features():
    both = probe(texts=((PROMPT, CONTINUATION), ([5], [6])))
    assert both.outside[1].tolist() == [[False] * 4] * 2
    assert both.streams.tolist() == [[0, 0, 0, 0], [0, -1, -1, -1]]
    assert both.free.tolist() == [[True] * 4, [True, False, False, False]]
    both = probe("t5", texts=((PROMPT, CONTINUATION), ([5], [6])))
    assert both.streams.tolist() == [[0, 0, 0, 1, 1], [0, 1, -1, -1, -1]]
    assert both.outside[1].tolist() == [[True, False, False, False, False], [False] * 5]


def test_a_token_at_the_baseline_cannot_be_removed_by_replacing_it():
    assert probe(baseline=21).free[0].tolist() == [True, False, True, True]
    assert probe(baseline=[7, 5, 9]).free[0].tolist() == [False, True, False, False]
    assert probe("t5", baseline=17).free[0].tolist() == [True, True, True, True, False]
    assert probe(baseline="mean").free.all()
    assert probe(removal="delete").free.all()
    # A feature can be removed when some token of it can.
    assert probe(baseline=21, segments=[[0, 1]]).free[0].tolist() == [True, True, True]


@given(st.data())
def test_the_coarser_segment_of_a_feature_holds_its_first_token(data):
    labels = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=3))
    others = [data.draw(st.permutations(one)) for one in labels]
    fine, coarse = ([partition(one) for one in several] for several in (labels, others))
    found = coarser_features(fine, coarse)
    assert found.shape == (len(fine), max(map(len, fine)))
    for row, features, parts in zip(found.tolist(), fine, coarse, strict=True):
        assert row[len(features) :] == [-1] * (len(row) - len(features))
        for feature, part in zip(features, row, strict=False):
            assert min(feature) in parts[part]


def partition(labels):
    """Places of equal labels, groups in the order of their first places."""
    return sorted([k for k, one in enumerate(labels) if one == label] for label in set(labels))


def test_a_probe_knows_coarser_segments_of_every_text():
    both = probe(texts=((PROMPT, CONTINUATION), ([5, 6], [6])), segments=[[0, 1]])
    assert both.coarser("token").tolist() == [[0, 2, 3], [0, -1, -1]]
    assert both.coarser([[0, 1]]).tolist() == [[0, 1, 2], [0, -1, -1]]
    assert probe("t5").coarser([[0], [1, 2]]).tolist() == [[0, 1, 1, 2, 3]]


@pytest.mark.parametrize("sides", ["source", "prefix"])
def test_only_the_sides_asked_for_can_be_removed(sides):
    expected = [sides == "source"] * 3 + [sides == "prefix"]
    assert probe(sides=sides).free[0].tolist() == expected
    assert probe(sides=sides, layer=0, baseline=21).free[0].tolist() == expected


def test_at_a_deeper_site_every_position_of_its_stack_can_be_removed():
    assert probe(layer=0, keep="special", baseline=21).free.all()
    assert probe("t5", layer="encoder.blocks.0.resid_post").free[0].tolist() == [True] * 3 + [False] * 2
    assert probe("t5", layer=0, keep=[0]).free.all()
