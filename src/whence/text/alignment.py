"""Which words, and which tokens, of two texts say the same."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from whence.core.errors import InputError, ModelError, UnsupportedError, unknown_name
from whence.core.grouping import first_character
from whence.core.grouping import words as word_spans
from whence.core.tokens import Token
from whence.text.embedders import LAYER, Embedder, embed, load_embedder
from whence.text.encoded import check_text
from whence.text.pairing import (
    Pair,
    diff_pairs,
    equal_in_order,
    inner_products,
    mutual_pairs,
    plain_pairs,
    softmax_pairs,
    unit_vectors,
)

METHODS = ("softmax", "mutual")
THRESHOLD = 1e-3

Method = Literal["softmax", "mutual"]


@dataclass(frozen=True)
class Word:
    """A word of a text, a run of punctuation, or a single CJK character.

    Attributes:
        text: Its characters, without blanks.
        start: Its first character in the text; for tokens, in what their texts join to, special tokens left out.
        stop: One past the last character.
    """

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class Alignment:
    """Pairs of words, and of tokens, of two texts.

    Attributes:
        a: The words of the first text.
        b: The words of the second text.
        pairs: Places in ``a`` and ``b`` of words that are aligned, sorted. A word may be in several pairs, or in none.
        token_pairs: The same for tokens; empty where texts were given.
        record: How the pairs were found, as plain data: ``rule`` (``"embedder"``; ``"identity"``, as the texts are the
            same; ``"diff"`` or ``"right"`` without an embedder), the options that were used, and ``warnings``.
    """

    a: tuple[Word, ...]
    b: tuple[Word, ...]
    pairs: tuple[Pair, ...]
    token_pairs: tuple[Pair, ...]
    record: dict[str, Any]


@dataclass(frozen=True)
class _Read:
    """A text as words, its items (ids of tokens; without tokens, words), and the words that each item overlaps."""

    words: tuple[Word, ...]
    items: tuple[Hashable, ...]
    held: tuple[tuple[int, ...], ...]
    tokens: bool


def align(
    a: str | Sequence[Token],
    b: str | Sequence[Token],
    *,
    embedder: str | Path | Embedder = "labse",
    method: Method = "softmax",
    threshold: float | None = None,
    layer: int | None = None,
    download: bool = True,
) -> Alignment:
    """Find the words of two texts, in one language or in two, that say the same.

    The words of each text are embedded together, in one vector for every part of a word, and the inner products of
    all parts are compared. Two words are aligned if any of their parts are; two tokens, if any words are with which
    they share a character. Tokens that share none with any word (special tokens, line breaks) are aligned if their ids
    are equal: the first with the first, the second with the second. A text is aligned with itself word by word and
    token by token.

    Jalili Sabet et al. 2020 (SimAlign); Dou and Neubig 2021 (AWESoME); Feng et al. 2022 (LaBSE).

    Args:
        a: A text, or consecutive tokens of one.
        b: A text, or consecutive tokens of one, as ``a``.
        embedder: ``"labse"``, a folder, or a hub id (see `load_embedder`); a function of a list of words that returns
            vectors and the place of the word of each; or ``"lexical"``: no vectors, but a diff of the words or ids,
            in which what takes the place of something else is aligned with it from the left. Where LaBSE cannot be
            had, that diff is used if half of the words or ids are shared; if not, last is aligned with last. The
            record says so and why.
        method: ``"softmax"``: parts of words each of which gives the other a probability over the threshold, in a
            softmax over all parts of the other text; or ``"mutual"``: parts with the largest cosine for each other.
        threshold: A probability, for ``"softmax"``; by default 0.001.
        layer: Hidden states of the encoder; by default 8.
        download: Fetch an encoder that the cache of the hub does not have.

    Returns:
        The alignment.

    Raises:
        InputError: One is text and the other tokens, or an option does not apply.
        UnknownNameError: No such method or embedder.
        ModelError: An encoder that was asked for, other than LaBSE, cannot be loaded.
        UnsupportedError: It needs the extra ``align``, which is not installed.

    Examples:
        >>> found = whence.align("the red house", "the house is red", embedder="lexical")
        >>> [(found.a[i].text, found.b[j].text) for i, j in found.pairs]
        [('the', 'the'), ('house', 'house')]
    """
    _check_options(embedder, method, threshold, layer)
    if isinstance(a, str) is not isinstance(b, str):
        raise InputError("align takes two texts or two lists of tokens, not one of each.")
    one, other = _read(a), _read(b)
    if one.items == other.items:
        return _identity(one, other)
    if isinstance(embedder, str) and embedder == "lexical":
        return _of_items(one, other, diff_pairs(one.items, other.items)[0], {"rule": "diff", "warnings": []})
    if not callable(embedder):
        try:
            embedder = load_embedder(embedder, layer=LAYER if layer is None else layer, download=download)
        except (ModelError, UnsupportedError) as error:
            if embedder != "labse":
                raise
            pairs, rule = plain_pairs(one.items, other.items)
            return _of_items(one, other, pairs, {"rule": rule, "warnings": [f"LaBSE was not used: {error}"]})
    limit = THRESHOLD if threshold is None else float(threshold)
    record = {
        "rule": "embedder",
        "embedder": str(getattr(embedder, "name", None) or getattr(embedder, "__qualname__", type(embedder).__name__)),
        "layer": getattr(embedder, "layer", None),
        "method": method,
        "threshold": limit if method == "softmax" else None,
        "warnings": [],
    }
    return _of_words(one, other, _similar_words(one.words, other.words, embedder, method, limit), record)


def _check_options(embedder: Any, method: str, threshold: float | None, layer: int | None) -> None:
    if not isinstance(embedder, str | Path) and not callable(embedder):
        raise InputError(f"an embedder is a name, a folder or a function of words, not {type(embedder).__name__}.")
    if method not in METHODS:
        raise unknown_name("way to align", str(method), METHODS)
    if threshold is not None and not 0 <= threshold < 1:
        raise InputError(f"threshold is a probability, from 0 and below 1, not {threshold!r}.")
    if threshold is not None and method != "softmax":
        raise InputError("threshold= is for method='softmax' only; leave it out.")
    if layer is not None and callable(embedder):
        raise InputError("layer= is for an encoder given by name; this embedder has its own.")
    if embedder == "lexical" and (method, threshold, layer) != ("softmax", None, None):
        raise InputError("method=, threshold= and layer= are for embedders; 'lexical' compares words as they are.")


def _read(given: str | Sequence[Token]) -> _Read:
    if isinstance(given, str):
        check_text(given, "the text to align")
        words = _words(given, word_spans(given), 0)
        return _Read(words, tuple(word.text for word in words), tuple((k,) for k in range(len(words))), tokens=False)
    if odd := [one for one in given if not isinstance(one, Token)]:
        raise InputError(f"align takes texts or tokens (whence's Token), not {type(odd[0]).__name__}.")
    words: tuple[Word, ...] = ()
    held: list[tuple[int, ...]] = [()] * len(given)
    offset = 0
    for run in _runs(given):
        text = "".join(given[place].text for place in run)
        spans = word_spans(text)
        stop, following = len(text), ()
        # A token without text is the beginning of a character that a token after it completes.
        for place in reversed(run):
            piece = given[place].text
            if piece:
                following = tuple(len(words) + k for k in _overlaps(spans, piece, stop - len(piece)))
            held[place] = following
            stop -= len(piece)
        words += _words(text, spans, offset)
        offset += len(text)
    return _Read(words, tuple(token.all_ids for token in given), tuple(held), tokens=True)


def _runs(tokens: Sequence[Token]) -> list[list[int]]:
    """Places of tokens between special ones, over which no word goes."""
    runs: list[list[int]] = [[]]
    for place, token in enumerate(tokens):
        if token.special:
            runs.append([])
        else:
            runs[-1].append(place)
    return [run for run in runs if run]


def _words(text: str, spans: Sequence[tuple[int, int]], offset: int) -> tuple[Word, ...]:
    shown = [(first_character(text, span), span[1]) for span in spans]
    return tuple(Word(text[start:stop], offset + start, offset + stop) for start, stop in shown)


def _overlaps(spans: Sequence[tuple[int, int]], piece: str, start: int) -> list[int]:
    """The words that share a character with a piece of text; blanks count only where the piece has nothing else."""
    shown = piece.strip()
    if shown:
        start += len(piece) - len(piece.lstrip())
    stop = start + len(shown or piece)
    first = bisect_right(spans, start, key=lambda span: span[1])
    found: list[int] = []
    for number in range(first, len(spans)):
        if spans[number][0] >= stop:
            break
        found.append(number)
    return found


def _similar_words(
    a: Sequence[Word], b: Sequence[Word], embedder: Embedder, method: Method, threshold: float
) -> set[Pair]:
    if not a or not b:
        return set()
    one, words_of_one = embed(embedder, [word.text for word in a])
    other, words_of_other = embed(embedder, [word.text for word in b])
    if len(one) and len(other) and one.shape[1] != other.shape[1]:
        raise InputError(
            f"the embedder returned vectors of {one.shape[1]} numbers for one text, of {other.shape[1]} for the other."
        )
    if not len(one) or not len(other):
        return set()
    if method == "softmax":
        pairs = softmax_pairs(inner_products(one, other), threshold)
    else:
        pairs = mutual_pairs(inner_products(unit_vectors(one), unit_vectors(other)))
    return {(words_of_one[i], words_of_other[j]) for i, j in pairs}


def _identity(one: _Read, other: _Read) -> Alignment:
    pairs = [(place, place) for place in range(len(one.items))]
    found = _of_items(one, other, pairs, {"rule": "identity", "warnings": []})
    if [word.text for word in one.words] == [word.text for word in other.words]:
        # Of a token that holds several words, each is aligned with itself only.
        return replace(found, pairs=tuple((place, place) for place in range(len(one.words))))
    return found


def _of_items(one: _Read, other: _Read, pairs: Sequence[Pair], record: dict[str, Any]) -> Alignment:
    """The alignment by pairs of items: words are aligned if items are that overlap them."""
    words = {(v, w) for i, j in pairs for v in one.held[i] for w in other.held[j]}
    return Alignment(one.words, other.words, tuple(sorted(words)), tuple(pairs) if one.tokens else (), record)


def _of_words(one: _Read, other: _Read, pairs: set[Pair], record: dict[str, Any]) -> Alignment:
    """The alignment by pairs of words: tokens are aligned if words are that they overlap."""
    tokens: set[Pair] = set()
    if one.tokens:
        here, there = _places_of_words(one), _places_of_words(other)
        tokens = {(i, j) for v, w in pairs for i in here.get(v, ()) for j in there.get(w, ())}
        tokens |= set(equal_in_order(_loose(one), _loose(other)))
    return Alignment(one.words, other.words, tuple(sorted(pairs)), tuple(sorted(tokens)), record)


def _places_of_words(read: _Read) -> dict[int, list[int]]:
    places: dict[int, list[int]] = {}
    for place, words in enumerate(read.held):
        for word in words:
            places.setdefault(word, []).append(place)
    return places


def _loose(read: _Read) -> list[tuple[int, Hashable]]:
    return [(place, read.items[place]) for place, words in enumerate(read.held) if not words]
