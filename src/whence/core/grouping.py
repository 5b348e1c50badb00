"""Groups of tokens by the text they stand for: words, and what lies between the matches of a pattern.

Knows texts and tokens only, so that features (before a method runs) and merged scores (after it) agree on what a
word is.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

from whence.core.errors import InputError
from whence.core.tokens import Token

Span = tuple[int, int]
CutMode = Literal["end", "start", "single"]

# Scripts without spaces whose characters count as words: Han with its extensions, kana, bopomofo.
_CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)
# Between two letters, or between two digits, these belong to the word.
_LETTER_JOINERS = "'’-\u2010\u2011"
_DIGIT_JOINERS = ".,"
# Joiners of letters and of emoji that are invisible themselves.
_INVISIBLE_JOINERS = "\u200c\u200d"


def first_character(text: str, span: tuple[int, int]) -> int:
    """Place of the first character of a span that is not white space (its last one if all are)."""
    start, stop = span
    while start < stop - 1 and text[start].isspace():
        start += 1
    return start


def compiled(pattern: Any, what: str) -> re.Pattern[str]:
    """A regular expression for texts.

    Args:
        pattern: The expression.
        what: What it is for, to begin the error with.

    Raises:
        InputError: It is none.
    """
    try:
        expression = re.compile(pattern)
        expression.search("")
    except (re.error, TypeError) as error:
        raise InputError(f"{what}: {pattern!r} is not a regular expression for text: {error}") from None
    return expression


def cut(pattern: re.Pattern[str], text: str, mode: CutMode = "end") -> list[Span]:
    """The stretches of a text between cuts at the matches of a pattern; empty matches cut nothing.

    Args:
        pattern: What to look for.
        text: Where.
        mode: A match ends its stretch (``"end"``), begins one (``"start"``), or is one (``"single"``).
    """
    found = [match.span() for match in pattern.finditer(text) if match.group()]
    sides = {"end": slice(1, 2), "start": slice(0, 1), "single": slice(0, 2)}[mode]
    cuts = [place for span in found for place in span[sides]]
    return [(start, stop) for start, stop in pairwise([0, *cuts, len(text)]) if start < stop]


def words(text: str) -> list[Span]:
    """Words, single CJK characters, and runs of anything else; each with the blanks in front of it.

    So a token of one blank, which some tokenizers put before rare words, is part of the word.
    """
    spans: list[Span] = []
    start, current = 0, "space"
    for place, char in enumerate(text):
        kind = _kind(char)
        if kind == "mark":
            if current != "space":
                continue
            kind = "word"
        if current == "word" and _joins(text, place):
            continue
        if kind == current and kind != "cjk":
            start = place + 1 if char in "\r\n" else start
            continue
        if current != "space":
            spans.append((start, place))
            start = place
        if kind == "space":
            start = place + (char in "\r\n")
        current = kind
    if current != "space":
        spans.append((start, len(text)))
    return spans


def _kind(char: str) -> str:
    if char.isspace():
        return "space"
    # Vowel signs, accents and joiners belong to what they stand on, in Hindi words as in emoji.
    if char in _INVISIBLE_JOINERS or unicodedata.category(char).startswith("M"):
        return "mark"
    if _CJK.match(char):
        return "cjk"
    return "word" if char.isalnum() or char == "_" else "other"


def _joins(text: str, place: int) -> bool:
    """Whether a mark inside a word holds it together: don't, well-known, 3.5."""
    before, char, after = text[place - 1 : place], text[place], text[place + 1 : place + 2]
    if char in _DIGIT_JOINERS:
        return before.isdigit() and after.isdigit()
    return char in _LETTER_JOINERS and bool(after) and _kind(after) == "word"


def by_text(tokens: Sequence[Token], find: Callable[[str], list[Span]]) -> list[list[int]]:
    """Positions of tokens, grouped by the spans that a function finds in the text of each side.

    Returns:
        Groups ordered by their first position. A token belongs to the span that holds its first character that is
        not white space; special tokens are groups of one, and tokens that share a character stay together.
    """
    names: list[object | None] = [None] * len(tokens)
    for side in ("source", "prefix"):
        text = ""
        places: list[int | None] = [None] * len(tokens)
        for index, token in enumerate(tokens):
            if token.side == side and token.text and not token.special:
                places[index] = len(text) + first_character(token.text, (0, len(token.text)))
                text += token.text
        name_spans(names, places, find(text), side)
    return grouped(tokens, names)


def name_spans(names: list[object | None], places: Sequence[int | None], spans: Sequence[Span], side: str) -> None:
    """Name every token by the span that holds its place; the spans are sorted and disjoint."""
    starts = [start for start, _ in spans]
    for index, place in enumerate(places):
        number = -1 if place is None else bisect_right(starts, place) - 1
        if number >= 0 and place is not None and place < spans[number][1]:
            names[index] = (side, number)


def grouped(tokens: Sequence[Token], names: Sequence[object | None]) -> list[list[int]]:
    """Positions by name; special tokens alone, and unfinished ones with the token that completes them."""
    final: list[object] = [("alone", index) for index in range(len(tokens))]
    complete = -1
    for index in reversed(range(len(tokens))):
        token, name = tokens[index], names[index]
        if token.special:
            continue
        if token.text:
            complete = index
        elif complete >= 0 and tokens[complete].side == token.side:
            final[index] = final[complete]
            continue
        if name is not None:
            final[index] = name
    groups: dict[object, list[int]] = {}
    for index, name in enumerate(final):
        groups.setdefault(name, []).append(index)
    return sorted(groups.values())
