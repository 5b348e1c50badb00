"""Features made of several tokens: words, sentences, messages, or any partition the user gives."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from whence.core.errors import InputError, unknown_name
from whence.core.tokens import Token
from whence.text.encoded import whole_number
from whence.text.prompt import first_character

Span = tuple[int, int]

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

_CLOSERS = "[\"'”’»›)\\]}」』】）〉》]"
_STOPS = ".!?…؟۔।॥።"
# The end of a line, with the blank lines after it; a carriage return belongs to its line feed.
_END = r"(?:\r?\n|\r(?!\n))"
_LINE = rf"{_END}(?:[^\S\r\n]*{_END})*"
# Each pattern matches the end of a segment; what it matches is the segment's own last part.
_ENDS = {
    # A stop ends a sentence only before white space: not in 3.5, not in example.org. Chinese and Japanese
    # ones need none. A run of stops is tried once, at its beginning, so that the search stays linear.
    "sentence": (
        rf"(?:(?<![{_STOPS}])[{_STOPS}]++{_CLOSERS}*+(?=\s|\Z)|[。！？｡]++{_CLOSERS}*+)"
        rf"(?:[^\S\r\n]*(?:{_LINE}|\Z))?|{_LINE}"
    ),
    "line": _LINE,
    "paragraph": rf"{_END}(?:[^\S\r\n]*{_END})+",
}
NAMES = ("token", "message", "word", *_ENDS)


def segment_tokens(tokens: Sequence[Token], how: Any = "token") -> list[list[int]]:
    """Partition the token axis into features.

    A token belongs to the segment that holds its first character that is not white space.

    Args:
        tokens: The token axis: source, then generated prefix.
        how: ``"token"``; ``"word"`` (with the blanks in front of it), ``"sentence"``, ``"line"`` or
            ``"paragraph"`` (with the line breaks that end it), each on each side's own text; ``"message"``
            (the named segments of the prompt); ``{"split": regex}`` (the text between matches, which end
            their segment); a list of character spans ``(start, stop)`` of the source text; or a list of lists
            of token positions.

    Returns:
        Groups of positions, ordered by their first position. Special tokens, and tokens outside every
        given span, are groups of one; but tokens that share a character stay together, except where
        tokens or positions are asked for.

    Raises:
        UnknownNameError: No such kind of segment; the nearest are listed.
        InputError: Spans or positions overlap, hold no token, or leave the text.
    """
    how = how.tolist() if hasattr(how, "tolist") else how
    if isinstance(how, str):
        if how not in NAMES:
            raise unknown_name("kind of segment", how, NAMES)
        if how == "token":
            return [[i] for i in range(len(tokens))]
        if how == "message":
            return _grouped(tokens, [token.segment if token.side == "source" else None for token in tokens])
        return _by_text(tokens, word_spans if how == "word" else partial(_cut, re.compile(_ENDS[how])))
    if isinstance(how, Mapping):
        if set(how) != {"split"}:
            raise InputError(f"segments as a mapping has the one key 'split', not {', '.join(map(repr, how))}.")
        return _by_text(tokens, partial(_cut, _compiled(how["split"])))
    if isinstance(how, list | tuple) and how and all(isinstance(part, tuple) for part in how):
        return _by_spans(tokens, how)
    if isinstance(how, list | tuple) and how and all(isinstance(part, list) for part in how):
        return _by_positions(len(tokens), how)
    raise InputError(
        f"segments are one of {', '.join(NAMES)}, {{'split': regex}}, a list of (start, stop) characters or a "
        f"list of lists of positions, not {how!r:.80}"
    )


def _compiled(pattern: Any) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
        compiled.search("")
    except (re.error, TypeError) as error:
        raise InputError(f"segments: {pattern!r} is not a regular expression for text: {error}") from None
    return compiled


def _cut(end: re.Pattern[str], text: str) -> list[Span]:
    """The stretches of a text that end where a pattern does; empty matches end nothing."""
    cuts = [match.end() for match in end.finditer(text) if match.group()]
    return [(start, stop) for start, stop in pairwise([0, *cuts, len(text)]) if start < stop]


def word_spans(text: str) -> list[Span]:
    """Words, single CJK characters, and runs of anything else; each with the blanks in front of it.

    So a token of one blank, which some tokenizers put before rare words, is part of the word.

    Args:
        text: Any text.

    Returns:
        Start and stop of each, in characters, in ascending order.
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


def _by_text(tokens: Sequence[Token], find: Callable[[str], list[Span]]) -> list[list[int]]:
    names: list[object | None] = [None] * len(tokens)
    for side in ("source", "prefix"):
        text = ""
        places: list[int | None] = [None] * len(tokens)
        for index, token in enumerate(tokens):
            if token.side == side and token.text and not token.special:
                places[index] = len(text) + first_character(token.text, (0, len(token.text)))
                text += token.text
        _name_spans(names, places, find(text), side)
    return _grouped(tokens, names)


def _by_spans(tokens: Sequence[Token], spans: Sequence[tuple[Any, ...]]) -> list[list[int]]:
    ordered: list[Span] = []
    for span in spans:
        start, stop = [whole_number(end) for end in span] if len(span) == 2 else (None, None)
        if start is None or stop is None or not 0 <= start < stop:
            raise InputError(f"segments: a span is (start, stop) with 0 <= start < stop, in characters, not {span!r}.")
        ordered.append((start, stop))
    ordered.sort()
    for one, following in pairwise(ordered):
        if one[1] > following[0]:
            raise InputError(f"segments: the spans {one} and {following} overlap; every token belongs to one feature.")
    end = max((token.stop or 0 for token in tokens if token.side == "source"), default=0)
    if ordered[-1][1] > end:
        raise InputError(f"segments: span {ordered[-1]} leaves the source text of {end} characters.")
    names: list[object | None] = [None] * len(tokens)
    places = [
        min(token.start + first_character(token.text, (0, len(token.text))), token.stop - 1)
        if token.side == "source" and token.start is not None and token.stop is not None
        else None
        for token in tokens
    ]
    _name_spans(names, places, ordered, "source")
    for number, span in enumerate(ordered):
        if ("source", number) not in names:
            raise InputError(
                f"segments: no token begins in the span {span}. A token belongs to the span that holds its first "
                "character that is not white space."
            )
    return _grouped(tokens, names)


def _by_positions(count: int, groups: Sequence[Sequence[Any]]) -> list[list[int]]:
    if any(not group for group in groups):
        raise InputError("segments: a group of positions is empty.")
    chosen: list[list[int]] = []
    for group in groups:
        positions = [whole_number(position) for position in group]
        odd = [given for given, k in zip(group, positions, strict=True) if k is None or not 0 <= k < count]
        if odd:
            raise InputError(f"segments: positions are whole numbers from 0 to {count - 1}, not {odd[0]!r}.")
        chosen.append(sorted(k for k in positions if k is not None))
    flat = [k for group in chosen for k in group]
    used = set(flat)
    if len(used) != len(flat):
        twice = next(k for k in flat if flat.count(k) > 1)
        raise InputError(f"segments: position {twice} is given twice; every token belongs to one feature.")
    return sorted(chosen + [[k] for k in range(count) if k not in used])


def _name_spans(names: list[object | None], places: Sequence[int | None], spans: Sequence[Span], side: str) -> None:
    """Name every token by the span that holds its place; the spans are sorted and disjoint."""
    starts = [start for start, _ in spans]
    for index, place in enumerate(places):
        number = -1 if place is None else bisect_right(starts, place) - 1
        if number >= 0 and place is not None and place < spans[number][1]:
            names[index] = (side, number)


def _grouped(tokens: Sequence[Token], names: Sequence[object | None]) -> list[list[int]]:
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
