"""Features made of several tokens: words, sentences, messages, or any partition the user gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from whence.core.errors import InputError, unknown_name
from whence.core.tokens import Token

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PATTERNS = {
    "word": rf"[{_CJK}]|[^\W{_CJK}]+(?:['’\-][^\W{_CJK}]+)*|[^\w\s]+",
    "sentence": r"[^\n.!?。！？]*[.!?。！？]+[\"'”’»)\]]*|[^\n.!?。！？]+",
    "line": r"[^\n]+",
    "paragraph": r"(?:[^\n]|\n(?!\s*\n))+",
}
NAMES = ("token", "message", *_PATTERNS)


def segment_tokens(tokens: Sequence[Token], how: Any = "token") -> list[list[int]]:
    """Partition the token axis into features.

    Args:
        tokens: The token axis: source, then generated prefix.
        how: ``"token"``; ``"word"``, ``"sentence"``, ``"line"`` or ``"paragraph"`` (on each side's own
            text); ``"message"`` (the named segments of the prompt); ``{"split": regex}`` (the text between
            matches, which end their segment); a list of character spans ``(start, stop)`` of the source
            text; or a list of lists of token positions.

    Returns:
        Groups of positions, ordered by their first position. Special tokens, and tokens outside every
        given span, are groups of one.

    Raises:
        UnknownNameError: No such kind of segment; the nearest are listed.
        InputError: Spans or positions overlap, or leave the text.
    """
    if how == "token":
        return [[i] for i in range(len(tokens))]
    if isinstance(how, str):
        if how not in NAMES:
            raise unknown_name("kind of segment", how, NAMES)
        if how == "message":
            return _grouped(tokens, lambda token: token.segment if token.side == "source" else None)
        return _by_pattern(tokens, re.compile(_PATTERNS[how]))
    if isinstance(how, Mapping):
        if set(how) != {"split"}:
            raise InputError(f"segments as a mapping has the one key 'split', not {sorted(how)}.")
        return _by_split(tokens, how["split"])
    if isinstance(how, Sequence) and how and all(isinstance(part, tuple) for part in how):
        return _by_spans(tokens, how)
    if isinstance(how, Sequence) and how and all(isinstance(part, list) for part in how):
        return _by_positions(len(tokens), how)
    raise InputError(
        f"segments are one of {', '.join(NAMES)}, {{'split': regex}}, a list of (start, stop) characters or a "
        f"list of lists of positions, not {how!r:.80}"
    )


def _side_text(tokens: Sequence[Token], side: str) -> tuple[str, list[int | None]]:
    """The text of one side, and where each token's first visible character stands in it."""
    text = ""
    places: list[int | None] = []
    for token in tokens:
        if token.side != side or token.special or not token.text:
            places.append(None)
            continue
        lead = len(token.text) - len(token.text.lstrip())
        places.append(len(text) + min(lead, len(token.text) - 1))
        text += token.text
    return text, places


def _by_pattern(tokens: Sequence[Token], pattern: re.Pattern[str]) -> list[list[int]]:
    names: list[object | None] = [None] * len(tokens)
    for side in ("source", "prefix"):
        text, places = _side_text(tokens, side)
        spans = [match.span() for match in pattern.finditer(text) if match.group().strip()]
        _name_spans(names, places, spans, side)
    _join_unfinished(tokens, names)
    return _grouped(tokens, dict(enumerate(names)).get, by_index=True)


def _by_split(tokens: Sequence[Token], pattern: str) -> list[list[int]]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"segments: {pattern!r} is not a regular expression: {error}") from None
    names: list[object | None] = [None] * len(tokens)
    for side in ("source", "prefix"):
        text, places = _side_text(tokens, side)
        cuts = [match.end() for match in compiled.finditer(text) if match.group()]
        edges = [0, *cuts, len(text)]
        _name_spans(names, places, list(zip(edges, edges[1:], strict=False)), side)
    _join_unfinished(tokens, names)
    return _grouped(tokens, dict(enumerate(names)).get, by_index=True)


def _by_spans(tokens: Sequence[Token], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    if any(not (isinstance(a, int) and isinstance(b, int) and 0 <= a < b) for a, b in spans):
        raise InputError("segments: every span is (start, stop) with 0 <= start < stop, in characters.")
    ordered = sorted(spans)
    if any(b > a for (_, b), (a, _) in zip(ordered, ordered[1:], strict=False)):
        raise InputError("segments: the spans overlap; every token belongs to one feature.")
    names: list[object | None] = [None] * len(tokens)
    end = max((token.stop or 0 for token in tokens if token.side == "source"), default=0)
    if ordered[-1][1] > end:
        raise InputError(f"segments: span {ordered[-1]} leaves the source text of {end} characters.")
    places: list[int | None] = []
    for token in tokens:
        if token.side != "source" or token.start is None or token.stop is None:
            places.append(None)
            continue
        lead = len(token.text) - len(token.text.lstrip())
        places.append(min(token.start + lead, token.stop - 1))
    _name_spans(names, places, ordered, "source")
    return _grouped(tokens, dict(enumerate(names)).get, by_index=True)


def _by_positions(count: int, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    flat = [i for group in groups for i in group]
    if any(not group for group in groups):
        raise InputError("segments: a group of positions is empty.")
    if any(not (isinstance(i, int) and 0 <= i < count) for i in flat):
        raise InputError(f"segments: positions go from 0 to {count - 1}.")
    if len(set(flat)) != len(flat):
        raise InputError("segments: a position stands in two groups; every token belongs to one feature.")
    rest = [[i] for i in range(count) if i not in set(flat)]
    return sorted([sorted(group) for group in groups] + rest)


def _name_spans(
    names: list[object | None], places: Sequence[int | None], spans: Sequence[tuple[int, int]], side: str
) -> None:
    for number, (start, stop) in enumerate(spans):
        for index, place in enumerate(places):
            if place is not None and start <= place < stop:
                names[index] = (side, number)


def _join_unfinished(tokens: Sequence[Token], names: list[object | None]) -> None:
    """A token without characters of its own is part of the character the next token completes."""
    for index in range(len(tokens) - 2, -1, -1):
        unfinished = not tokens[index].text and not tokens[index].special
        if unfinished and names[index] is None and tokens[index].side == tokens[index + 1].side:
            names[index] = names[index + 1]


def _grouped(
    tokens: Sequence[Token], name_of: Callable[[Any], object | None], *, by_index: bool = False
) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for index, token in enumerate(tokens):
        name = None if token.special else name_of(index if by_index else token)
        groups.setdefault(("alone", index) if name is None else name, []).append(index)
    return sorted(groups.values())
