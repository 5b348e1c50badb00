"""What a generated example is, and the draft that a grammar writes it into.

Nothing here knows a language: a grammar fills templates with slots, and the draft keeps track of where
each word came to stand and which earlier words decide it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Side = Literal["source", "prefix"]


@dataclass(frozen=True)
class Span:
    """A stretch of characters: of the prompt ("source") or of the continuation ("prefix")."""

    side: Side
    start: int
    stop: int


@dataclass(frozen=True)
class Determined:
    """A word of the continuation that the text before it decides.

    `start` and `stop` are character positions in the continuation. `evidence` holds every word that
    decides it; `alternatives` the other words that the grammar could put in its place.
    """

    kind: str
    start: int
    stop: int
    evidence: tuple[Span, ...]
    alternatives: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A prompt, the continuation a perfect model would accept, and the words in it that are determined."""

    prompt: str
    continuation: str
    determined: tuple[Determined, ...]


@dataclass(frozen=True)
class Slot:
    """A word to put in a template.

    `key` files the word under a name, so that later words can point at it. With a `kind` the word is
    determined as soon as the first key of `needs` has been filed; all words filed under `needs` by then
    are its evidence.
    """

    text: str
    key: str | None = None
    kind: str | None = None
    needs: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planned:
    """A determined word at its place in the whole draft, with the places of its evidence."""

    kind: str
    start: int
    stop: int
    evidence: tuple[tuple[int, int], ...]
    alternatives: tuple[str, ...]


@dataclass
class Draft:
    """A text under construction, with the places of the words that matter."""

    text: str = ""
    marks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    planned: list[Planned] = field(default_factory=list)

    def write(self, template: str, slots: Mapping[str, Slot]) -> None:
        """Append a template; `{name}` is a slot, `{=name}` a slot whose word is free at this place."""
        for piece in re.split(r"(\{=?\w+\})", template):
            if piece.startswith("{"):
                self._put(slots[piece.strip("{=}")], free=piece.startswith("{="))
            else:
                self.text += piece

    def _put(self, slot: Slot, *, free: bool) -> None:
        start, stop = len(self.text), len(self.text) + len(slot.text)
        self.text += slot.text
        if slot.kind and not free and self.marks.get(slot.needs[0]):
            evidence = sorted({place for key in slot.needs for place in self.marks.get(key, ())})
            self.planned.append(Planned(slot.kind, start, stop, tuple(evidence), slot.alternatives))
        if slot.key:
            self.marks.setdefault(slot.key, []).append((start, stop))

    def split(self, at: int) -> Example:
        """Cut the draft in two; only words with evidence in the prompt stay listed as determined."""
        determined = []
        for word in self.planned:
            if word.start < at or not any(stop <= at for _, stop in word.evidence):
                continue
            evidence = tuple(
                Span("source", start, stop) if stop <= at else Span("prefix", start - at, stop - at)
                for start, stop in word.evidence
            )
            determined.append(Determined(word.kind, word.start - at, word.stop - at, evidence, word.alternatives))
        return Example(self.text[:at], self.text[at:], tuple(determined))
