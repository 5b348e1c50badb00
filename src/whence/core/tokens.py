"""What a token is, on the one token axis that every result has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["source", "prefix"]


@dataclass(frozen=True)
class Token:
    """One token of the input, or of the text generated so far.

    Attributes:
        id: Token id in the model's vocabulary. Ids are the truth; text is a view of them.
            For an entry that stands for several tokens (a segment, a span of steps), the first.
        text: The characters this token stands for (empty for a special token without text).
        start: First character in the text of its side, or None where no character belongs to it.
        stop: One past the last character, or None.
        side: ``"source"`` for the prompt or encoder input, ``"prefix"`` for the continuation.
        segment: Name of the segment that holds it: a role, a document, or the side.
        special: The tokenizer flags this id as special (begin, end, padding, language tag).
        fixed: Kept at its true value by methods that compare with a baseline; scores 0 there.
        ids: All ids of an entry that stands for several tokens; empty for a single token.
    """

    id: int
    text: str
    start: int | None
    stop: int | None
    side: Side
    segment: str = ""
    special: bool = False
    fixed: bool = False
    ids: tuple[int, ...] = ()
