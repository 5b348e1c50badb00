"""What a token is, on the one token axis that every result has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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

    @property
    def all_ids(self) -> tuple[int, ...]:
        """The ids of all that the entry stands for."""
        return self.ids or (self.id,)


def join_tokens(members: Sequence[Token], text: str, **changes: Any) -> Token:
    """One entry that stands for several.

    Args:
        members: The entries, in order.
        text: What it is called.
        **changes: Fields that are not those of the first.

    Returns:
        The entry: from the first character of any of them to the last, with the ids of all.
    """
    return replace(
        members[0],
        text=text,
        start=next((token.start for token in members if token.start is not None), None),
        stop=next((token.stop for token in reversed(members) if token.stop is not None), None),
        ids=tuple(k for token in members for k in token.all_ids),
        **changes,
    )
