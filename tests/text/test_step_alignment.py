"""One token of a foil for each token of a text: rules, given pairs, and what is recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from text.small_tokenizers import LOSSLESS, few, texts, tokenizer_of
from whence.core.errors import InputError, UnknownNameError
from whence.core.tokens import Token
from whence.text.encoded import encode_text
from whence.text.step_alignment import align_steps

ids = st.lists(st.integers(0, 4), max_size=8)


def tokens(numbers, special=()):
    return tuple(
        Token(k, "" if k in special else f" w{k}", None, None, "prefix", special=k in special) for k in numbers
    )


def by_number(words):
    """Words w0, w1, ... as unit vectors far enough from each other."""
    vectors = np.zeros((len(words), 40))
    for place, word in enumerate(words):
        vectors[place, int(word[1:])] = 5
    return vectors, range(len(words))


@few
@given(text=texts, kind=st.sampled_from(LOSSLESS), fill=st.sampled_from(["right", "left", "none"]))
@pytest.mark.parametrize("how", [None, "auto", "lexical"])
def test_tokens_stand_against_themselves(how, text, kind, fill):
    these = encode_text(tokenizer_of(kind), text).tokens("prefix")
    found = align_steps(these, these, how, fill=fill)
    assert found.partner == tuple(range(len(these)))
    assert found.record == {"rule": "identity", "warnings": [], "fill": fill, "monotone": False, "unpaired": []}


def test_without_an_embedder_a_diff_if_half_is_shared():
    found = align_steps(tokens([1, 2, 3, 4]), tokens([1, 7, 2, 8, 8]))
    assert found.record["rule"] == "right"
    assert found.partner == (1, 2, 3, 4)
    found = align_steps(tokens([1, 2, 3, 4]), tokens([1, 7, 2, 8]))
    assert found.record["rule"] == "diff"
    assert found.partner == (0, 2, 3, 3)  # the last has no partner of its own
    assert found.record["unpaired"] == [3]


def test_lexical_is_a_diff_whatever_is_shared():
    found = align_steps(tokens([1, 2, 3]), tokens([7, 8]), "lexical", fill="none")
    assert found.partner == (0, 1, None)
    assert found.record["rule"] == "diff"


@given(main=ids, foil=ids, fill=st.sampled_from(["right", "left", "none"]), monotone=st.booleans())
@pytest.mark.parametrize("how", [None, "lexical", by_number])
def test_partners_are_tokens_of_the_foil(how, main, foil, fill, monotone):
    found = align_steps(tokens(main), tokens(foil), how, fill=fill, monotone=monotone)
    assert len(found.partner) == len(main)
    assert all(partner is None or 0 <= partner < len(foil) for partner in found.partner)
    assert (None in found.partner) == bool(found.record["unpaired"] and (fill == "none" or not foil))
    assert json.loads(json.dumps(found.record)) == found.record


def test_embedder_pairs_words_and_special_tokens():
    main, foil = tokens([9, 1, 2, 1, 8], special=(8, 9)), tokens([9, 2, 1, 1, 8], special=(8, 9))
    found = align_steps(main, foil, by_number)
    # The first 1 takes the first free 1; the second takes the other.
    assert found.partner == (0, 2, 1, 3, 4)
    assert found.record["rule"] == "embedder"
    assert found.record["embedder"] == "by_number"
    assert align_steps(main, foil, by_number, monotone=True, fill="none").partner.count(None) == 1


def test_auto_without_labse_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    main, foil = tokens([1, 2]), tokens([1, 3])
    found = align_steps(main, foil, "auto")
    assert found.partner == align_steps(main, foil).partner
    assert found.record["rule"] == "diff"
    assert "LaBSE" in found.record["warnings"][0]


@pytest.mark.parametrize(
    ("how", "name", "download"), [("auto", "labse", False), ("labse", "labse", True), ("./e", "./e", True)]
)
def test_auto_fetches_nothing(how, name, download, monkeypatch):
    asked = []

    def load(name, *, layer, download):
        asked.append((name, layer, download))
        return by_number

    monkeypatch.setattr("whence.text.alignment.load_embedder", load)
    assert align_steps(tokens([1, 2]), tokens([2, 1]), how).partner == (1, 0)
    assert asked == [(name, 8, download)]


# Pairs that are given.


@given(main=ids, foil=ids, data=st.data())
def test_given_pairs_the_first_of_a_token_wins(main, foil, data):
    places = st.tuples(st.integers(0, len(main) - 1), st.integers(0, len(foil) - 1))
    pairs = data.draw(st.lists(places, max_size=6) if main and foil else st.just([]))
    found = align_steps(tokens(main), tokens(foil), pairs, fill="none")
    first = dict(reversed(pairs))
    assert found.partner == tuple(first.get(place) for place in range(len(main)))
    assert len(found.record["warnings"]) == len(pairs) - len(first)
    assert found.record["rule"] == "given"


def test_given_pairs_are_filled_and_repaired():
    main, foil = tokens([1, 2, 3, 4]), tokens([5, 6, 7, 8, 9])
    assert align_steps(main, foil, [(0, 3)]).partner == (3, 2, 3, 4)
    assert align_steps(main, foil, [(0, 3)], fill="left").partner == (3, 1, 2, 3)
    assert align_steps(main, foil, [(0, 3), (1, 0), (2, 1)], monotone=True, fill="none").partner == (None, 0, 1, None)
    pairs: Any = np.array([[1, 0]])
    assert align_steps(main, foil, pairs, fill="none").partner == (None, 0, None, None)
    twice = align_steps(main, foil, [(1, 0), (1, 2)], fill="none")
    assert twice.record["warnings"] == ["token 1 was paired with 0 before; the pair (1, 2) was not used"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(2, 0)], r"\(2, 0\) leaves the texts, of 2 and 3 tokens"),
        ([(0, 3)], "leaves the texts"),
        ([(-1, 0)], "leaves the texts"),
        ([(0, 1, 2)], "two places"),
        ([0, 1], "two places"),
        ([(0, 1.5)], "two places"),
        ([(True, 1)], "two places"),
        (3, "not int"),
    ],
)
def test_pairs_that_are_none_are_refused(pairs, message):
    with pytest.raises(InputError, match=message):
        align_steps(tokens([1, 2]), tokens([1, 2, 3]), pairs)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'right'"):
        align_steps(tokens([1]), tokens([2]), fill="rigth")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownNameError, match="labse"):
        align_steps(tokens([1]), tokens([2]), "lapse")


def test_entries_that_stand_for_several_tokens_are_compared_by_all():
    one, other = replace(tokens([1])[0], ids=(1, 2)), replace(tokens([1])[0], ids=(1, 3))
    assert align_steps([one], [one]).record["rule"] == "identity"
    assert align_steps([one], [other]).record["rule"] == "right"
