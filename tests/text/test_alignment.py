"""Alignment of words and tokens: against plain loops, and what must hold for any texts."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from text.small_tokenizers import LOSSLESS, few, texts, tokenizer_of
from whence.core.errors import InputError, ModelError, UnknownNameError
from whence.core.tokens import Token
from whence.text.alignment import align
from whence.text.encoded import encode_ids, encode_text

EMOJI = "👩‍👩‍👧"


def parts(words):
    """Between no and three vectors for each word, the same wherever it stands."""
    vectors, places = [], []
    for place, word in enumerate(words):
        digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        for part in range(digest[0] % 4):
            vectors.append([(digest[1 + 5 * part + k] - 128) / 40 for k in range(5)])
            places.append(place)
    return np.array(vectors).reshape(-1, 5), places


def one_hot(words):
    """A vector for each word; equal words have equal ones."""
    table = np.zeros((len(words), 64))
    for place, word in enumerate(words):
        table[place, hashlib.sha256(word.encode()).digest()[0] % 64] = 5
    return table, list(range(len(words)))


def never(words):
    raise AssertionError("not to be asked")


def tokens_of(kind, text):
    return encode_text(tokenizer_of(kind), text).tokens("prefix")


def plain(*texts_of_tokens):
    return [Token(int.from_bytes(text.encode()), text, None, None, "prefix") for text in texts_of_tokens]


def shown(found):
    return [(found.a[i].text, found.b[j].text) for i, j in found.pairs]


# Words from vectors.


def by_loops(a, b, method, threshold):
    """Pairs of words as the papers say it, number by number."""
    (rows, row_words), (columns, column_words) = parts(a), parts(b)
    if method == "mutual":
        rows, columns = ([v / math.sqrt(sum(x * x for x in v)) for v in one] for one in (rows, columns))
    products = [[sum(x * y for x, y in zip(v, w, strict=True)) for w in columns] for v in rows]
    pairs = set()
    for i, row in enumerate(products):
        for j, value in enumerate(row):
            column = [other[j] for other in products]
            if method == "mutual":
                # Equal vectors tie up to rounding, and the first counts.
                chosen = all(x < value - 1e-12 for x in row[:j]) and all(x <= value + 1e-12 for x in row)
                chosen = chosen and all(x < value - 1e-12 for x in column[:i]) and max(column) <= value + 1e-12
            else:
                chosen = all(math.exp(value) / sum(map(math.exp, line)) > threshold for line in (row, column))
            if chosen:
                pairs.add((row_words[i], column_words[j]))
    return tuple(sorted(pairs))


@few
@given(a=texts, b=texts, method=st.sampled_from(["softmax", "mutual"]))
def test_pairs_are_those_of_plain_loops(a, b, method):
    found = align(a, b, embedder=parts, method=method)
    if found.record["rule"] == "embedder":
        words = [word.text for word in found.a], [word.text for word in found.b]
        assert found.pairs == by_loops(*words, method, 1e-3)


def test_a_word_is_aligned_if_one_of_its_parts_is():
    # Two words of two parts each against one word of three.
    table = {"ab": [[4, 0], [0, 4]], "cd": [[-4, 0], [0, -4]], "xyz": [[4, 0], [0, 4], [-3, -3]]}

    def embedder(words):
        vectors = [(vector, place) for place, word in enumerate(words) for vector in table[word]]
        return np.array([vector for vector, _ in vectors], float), [place for _, place in vectors]

    assert shown(align("ab cd", "xyz", embedder=embedder, method="mutual")) == [("ab", "xyz"), ("cd", "xyz")]
    assert shown(align("ab cd", "xyz", embedder=embedder, threshold=0.3)) == [("ab", "xyz"), ("cd", "xyz")]
    # Both parts of cd have the third part of xyz, each gets half of it.
    assert shown(align("ab cd", "xyz", embedder=embedder, threshold=0.9)) == [("ab", "xyz")]
    assert shown(align("ab cd", "xyz", embedder=embedder, threshold=0.9999999)) == []


@few
@given(a=texts, b=texts, kind=st.sampled_from(LOSSLESS), method=st.sampled_from(["softmax", "mutual"]))
def test_exchanging_the_texts_exchanges_the_pairs(a, b, kind, method):
    for one, other in ((a, b), (tokens_of(kind, a), tokens_of(kind, b))):
        there, back = (align(*both, embedder=parts, method=method) for both in ((one, other), (other, one)))
        assert back.pairs == tuple(sorted((j, i) for i, j in there.pairs))
        assert back.token_pairs == tuple(sorted((j, i) for i, j in there.token_pairs))
        assert (back.a, back.b) == (there.b, there.a)


# A text with itself.


@few
@given(text=texts, kind=st.sampled_from(LOSSLESS))
@pytest.mark.parametrize(
    "options", [{"embedder": never}, {"embedder": "lexical"}, {"embedder": never, "method": "mutual"}, {}]
)
def test_a_text_is_aligned_with_itself_word_by_word(options, text, kind):
    of_text = align(text, text, **options)
    assert of_text.pairs == tuple((k, k) for k in range(len(of_text.a)))
    assert of_text.token_pairs == ()
    these = tokens_of(kind, text)
    of_tokens = align(these, these, **options)
    assert of_tokens.pairs == tuple((k, k) for k in range(len(of_tokens.a)))
    assert of_tokens.token_pairs == tuple((k, k) for k in range(len(these)))
    assert of_tokens.record == of_text.record == {"rule": "identity", "warnings": []}


def test_equal_ids_are_aligned_token_by_token_though_their_text_differs():
    # As at the beginning of a text, where decoders leave the blank out.
    found = align([Token(1, "the", 0, 3, "prefix")], [Token(1, " the", 0, 4, "prefix")], embedder=never)
    assert found.pairs == found.token_pairs == ((0, 0),)
    found = align([Token(1, "a b", 0, 3, "prefix")], [Token(1, "a", 0, 1, "prefix")], embedder=never)
    assert found.pairs == ((0, 0), (1, 0))


# Words.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n ", []),
        ("the cat, sat!", ["the", "cat", ",", "sat", "!"]),
        ("don't pay 3.5", ["don't", "pay", "3.5"]),
        ("我爱猫。", ["我", "爱", "猫", "。"]),
        (f"ok {EMOJI}x", ["ok", EMOJI, "x"]),
        ("a\ufffd b", ["a", "\ufffd", "b"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
    ],
)
def test_words_have_their_characters(text, words):
    found = align(text, "", embedder=one_hot)
    assert [word.text for word in found.a] == words
    assert [text[word.start : word.stop] for word in found.a] == words
    assert found.b == found.pairs == ()


@few
@given(text=texts)
def test_words_are_disjoint_and_leave_only_blanks(text):
    words = align(text, text).a
    assert all(one.stop <= other.start for one, other in pairwise(words))
    covered = {k for word in words for k in range(word.start, word.stop)}
    assert all(char.isspace() for k, char in enumerate(text) if k not in covered and char not in "\u200c\u200d")


# Tokens.


@few
@given(a=texts, b=texts, kind=st.sampled_from(LOSSLESS))
def test_tokens_are_aligned_if_words_are_that_they_overlap(a, b, kind):
    left, right = ([token for token in tokens_of(kind, text) if not token.special] for text in (a, b))
    found = align(left, right, embedder=parts)
    if found.record["rule"] != "embedder":
        return

    def overlaps(token, text, word):
        places = range(token.start, token.stop)
        return any(word.start <= place < word.stop and not text[place].isspace() for place in places)

    for i, one in enumerate(left):
        for j, other in enumerate(right):
            if one.text.strip() and other.text.strip():
                expected = any(overlaps(one, a, found.a[v]) and overlaps(other, b, found.b[w]) for v, w in found.pairs)
                loose = not any(overlaps(one, a, word) for word in found.a)
                assert loose or ((i, j) in found.token_pairs) == expected


def test_tokens_of_one_word_are_all_aligned_with_those_of_the_other():
    found = align(plain("un", "happy", " cat"), plain(" cat", " unha", "ppy"), embedder=one_hot)
    assert shown(found) == [("unhappy", "unhappy"), ("cat", "cat")]
    assert found.token_pairs == ((0, 1), (0, 2), (1, 1), (1, 2), (2, 0))


def test_a_token_over_two_words_is_aligned_with_both():
    found = align(plain("a b", " c"), plain("b", " c", " a"), embedder=one_hot)
    assert found.token_pairs == ((0, 0), (0, 2), (1, 1))


def test_a_blank_belongs_to_the_word_after_it():
    found = align(plain("a", " ", "b"), plain("b", " ", "a"), embedder=one_hot)
    assert found.token_pairs == ((0, 1), (0, 2), (1, 0), (2, 0))


def test_beginnings_of_characters_go_with_the_character():
    tokenizer = tokenizer_of("bytes")
    emoji, letter = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("🦆", " cat"))
    assert len(emoji) > 1
    one = encode_ids(tokenizer, [*emoji, *letter]).tokens("prefix")
    other = encode_ids(tokenizer, [*letter, *emoji]).tokens("prefix")
    found = align(one, other, embedder=one_hot)
    assert shown(found) == [("🦆", "🦆"), ("cat", "cat")]
    expected = {(i, len(letter) + j) for i in range(len(emoji)) for j in range(len(emoji))}
    expected |= {(len(emoji) + i, j) for i in range(len(letter)) for j in range(len(letter))}
    assert set(found.token_pairs) == expected


def test_bytes_that_are_no_character_are_aligned_too():
    tokenizer = tokenizer_of("bytes")
    broken = tokenizer("🦆", add_special_tokens=False)["input_ids"][:1]
    letter = tokenizer(" cat", add_special_tokens=False)["input_ids"]
    one = encode_ids(tokenizer, [*broken, *letter]).tokens("prefix")
    other = encode_ids(tokenizer, [*letter, *broken]).tokens("prefix")
    assert "\ufffd" in "".join(token.text for token in one)
    found = align(one, other, embedder=one_hot)
    assert {(0, len(letter)), (1, 0)} <= set(found.token_pairs)
    assert (0, 0) not in found.token_pairs


def test_special_tokens_pair_up_by_their_ids_and_cut_words():
    begin, end = (Token(k, name, None, None, "prefix", special=True) for k, name in ((1, "<s>"), (2, "</s>")))
    one = [begin, *plain("ca"), begin, *plain("t"), end]
    other = [begin, *plain("cat"), begin, begin]
    found = align(one, other, embedder=one_hot, threshold=0.9)
    assert [word.text for word in found.a] == ["ca", "t"]
    assert found.pairs == ()
    assert found.token_pairs == ((0, 0), (2, 2))


def test_words_after_a_special_token_are_counted_on():
    between = Token(1, "<s>", None, None, "prefix", special=True)
    found = align([*plain("a"), between, *plain(" b", " c")], plain("c", " b"), embedder=one_hot)
    assert [(word.start, word.stop) for word in found.a] == [(0, 1), (2, 3), (4, 5)]
    assert found.pairs == ((1, 1), (2, 0))
    assert found.token_pairs == ((2, 1), (3, 0))


def test_blanks_in_front_of_a_word_make_no_difference():
    assert align(plain("a", "\n\n\nb"), plain("b", " a"), embedder=one_hot).token_pairs == ((0, 1), (1, 0))


def test_line_breaks_pair_up_as_special_tokens_do():
    one, other = plain("a", "\n", "b"), plain("\n", "b", "\n", "a")
    assert align(one, other, embedder=one_hot).token_pairs == ((0, 3), (1, 0), (2, 1))


def test_single_tokens_and_none():
    assert align(plain("cat"), plain(" cat"), embedder=one_hot).token_pairs == ((0, 0),)
    assert align([], plain("cat"), embedder=never).token_pairs == ()
    assert align([], [], embedder=never).record["rule"] == "identity"


# Without an embedder.


def test_lexical_alignment_of_words_is_a_diff():
    found = align("the red house is old", "the green house, is it old", embedder="lexical")
    pairs = [("the", "the"), ("red", "green"), ("house", "house"), ("is", "is"), ("old", "old")]
    assert shown(found) == pairs
    assert found.record == {"rule": "diff", "warnings": []}


def test_lexical_alignment_of_tokens_compares_ids():
    one = [Token(k, text, None, None, "prefix") for k, text in ((1, "un"), (2, "happy"), (3, " cat"))]
    other = [Token(k, text, None, None, "prefix") for k, text in ((4, "happy"), (3, " cat"))]
    found = align(one, other, embedder="lexical")
    assert found.token_pairs == ((0, 0), (2, 1))
    assert shown(found) == [("unhappy", "happy"), ("cat", "cat")]


@pytest.mark.parametrize(
    ("a", "b", "rule", "pairs"),
    [
        ("the red house", "the blue house", "diff", [("the", "the"), ("red", "blue"), ("house", "house")]),
        ("red house", "das rote Haus", "right", [("red", "rote"), ("house", "Haus")]),
    ],
)
def test_where_labse_cannot_be_had_words_are_compared(a, b, rule, pairs, monkeypatch):
    def missing(name, **options):
        raise ModelError("no network")

    monkeypatch.setattr("whence.text.alignment.load_embedder", missing)
    found = align(a, b)
    assert shown(found) == pairs
    assert found.record == {"rule": rule, "warnings": ["LaBSE was not used: no network"]}
    with pytest.raises(ModelError, match="no network"):
        align(a, b, embedder="some/encoder")


# Options and records.


def test_record_says_how_and_is_plain():
    found = align("a b", "b c", embedder=one_hot, method="mutual").record
    assert found == {
        "rule": "embedder",
        "embedder": "one_hot",
        "layer": None,
        "method": "mutual",
        "threshold": None,
        "warnings": [],
    }
    assert json.loads(json.dumps(found)) == found
    assert align("a b", "b c", embedder=one_hot).record["threshold"] == 1e-3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "mutal"}, UnknownNameError, "Did you mean 'mutual'"),
        ({"method": "mutual", "threshold": 0.1}, InputError, "softmax"),
        ({"threshold": 1.0}, InputError, "below 1"),
        ({"embedder": one_hot, "layer": 3}, InputError, "layer="),
        ({"embedder": "lexical", "method": "mutual"}, InputError, "'lexical' compares words"),
        ({"embedder": 3}, InputError, "not int"),
        ({"embedder": "lapse"}, UnknownNameError, "labse"),
    ],
)
def test_options_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        align("a b", "b c", **options)


def test_texts_and_tokens_are_not_mixed():
    with pytest.raises(InputError, match="not one of each"):
        align("a", plain("a"), embedder=one_hot)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="not int"):
        align([1], [2], embedder=one_hot)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="surrogate"):
        align("a", "\ud800", embedder=one_hot)


def test_vectors_of_two_lengths_are_refused():
    def growing(words):
        return np.ones((len(words), len(words))), range(len(words))

    with pytest.raises(InputError, match="2 numbers for one text, of 3"):
        align("a b", "a b c", embedder=growing)
