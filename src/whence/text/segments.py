"""Features made of several tokens: words, sentences, messages, or any partition the user gives."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from whence.core.errors import InputError, unknown_name
from whence.core.grouping import Span, by_text, compiled, cut, first_character, grouped, name_spans, words
from whence.core.tokens import Token
from whence.text.encoded import whole_number

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
            return grouped(tokens, [token.segment if token.side == "source" else None for token in tokens])
        return by_text(tokens, words if how == "word" else partial(cut, re.compile(_ENDS[how])))
    if isinstance(how, Mapping):
        if set(how) != {"split"}:
            raise InputError(f"segments as a mapping has the one key 'split', not {', '.join(map(repr, how))}.")
        return by_text(tokens, partial(cut, compiled(how["split"], "segments")))
    if isinstance(how, list | tuple) and how and all(isinstance(part, tuple) for part in how):
        return _by_spans(tokens, how)
    if isinstance(how, list | tuple) and how and all(isinstance(part, list) for part in how):
        return _by_positions(len(tokens), how)
    raise InputError(
        f"segments are one of {', '.join(NAMES)}, {{'split': regex}}, a list of (start, stop) characters or a "
        f"list of lists of positions, not {how!r:.80}"
    )


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
    name_spans(names, places, ordered, "source")
    for number, span in enumerate(ordered):
        if ("source", number) not in names:
            raise InputError(
                f"segments: no token begins in the span {span}. A token belongs to the span that holds its first "
                "character that is not white space."
            )
    return grouped(tokens, names)


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
