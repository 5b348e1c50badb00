"""How a contrast is read: defaults, the names of Inseq, and what contradicts itself."""

from __future__ import annotations

import pytest

import whence
from whence.text.contrast import Contrast, parse_contrast, parse_contrasts


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (" she", Contrast(" she")),
        ([4, 5], Contrast([4, 5])),
        ({"continuation": " she", "evaluate": "own"}, Contrast(" she", evaluate="own", grad="shared")),
        ({"continuation": "a", "evaluate": "own", "grad": "main"}, Contrast("a", evaluate="own")),
        ({"source": "in"}, Contrast(source="in", evaluate="own")),
        ({"prompt": "in"}, Contrast(source="in", evaluate="own")),
        ({"source": "in", "grad": "shared"}, Contrast(source="in", evaluate="own", grad="shared")),
        ({"contrast_sources": "in", "contrast_targets": "out"}, Contrast("out", "in", evaluate="own")),
        ({"contrast_targets": "out", "contrast_force_inputs": True}, Contrast("out", evaluate="own", grad="shared")),
        ({"contrast_targets": "a", "contrast_targets_alignments": "auto"}, Contrast("a", align="auto")),
        ({"continuation": "a", "contrast_force_inputs": False}, Contrast("a")),
    ],
)
def test_what_is_left_open_is_filled_in(given, expected):
    assert parse_contrast(given) == expected
    assert parse_contrast(expected) is expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "another continuation"),
        ({}, "it has neither"),
        ({"evaluate": "own"}, "it has neither"),
        ({"source": "in", "evaluate": "main"}, "never be read"),
        ({"continuation": "a", "grad": "shared"}, "add evaluate='own'"),
        ({"continuation": "a", "evaluate": "both"}, "main or own, not 'both'"),
        ({"source": "in", "align": [(0, 0)]}, "only one is given"),
        ({"source": "in", "prompt": "also"}, "says twice"),
    ],
)
def test_contradictions(given, message):
    with pytest.raises(whence.InputError, match=message):
        parse_contrast(given)


def test_unknown_entries_have_neighbours():
    with pytest.raises(whence.UnknownNameError, match="'continuation'"):
        parse_contrast({"continuations": "a"})


def test_one_for_each_prompt():
    assert parse_contrasts(None, 2, several=True) == [None, None]
    assert parse_contrasts(["a", {"source": "b"}], 2, several=True) == [
        Contrast("a"),
        Contrast(source="b", evaluate="own"),
    ]
    for given in ("a", ["a"], {"source": "b"}):
        with pytest.raises(whence.InputError, match="one for each of the 2"):
            parse_contrasts(given, 2, several=True)
