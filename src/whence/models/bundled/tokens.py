"""From the characters of an example to the positions of a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from whence.models.bundled.example import Determined, Example, Side

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Place = tuple[int, int]


@dataclass(frozen=True)
class DeterminedToken:
    """A token of the continuation that the evidence decides.

    `step` counts the tokens of the continuation. An evidence position is ("source", index in the prompt's
    tokens, special tokens included) or ("prefix", index in the continuation's tokens).
    """

    step: int
    kind: str
    token_id: int
    evidence: tuple[tuple[Side, int], ...]


def _touching(places: list[Place], start: int, stop: int) -> list[int]:
    return [i for i, (first, last) in enumerate(places) if first < stop and last > start]


@lru_cache(maxsize=1 << 14)
def _pieces(tokenizer: Any, text: str) -> list[int]:
    """Pieces of a word; a grammar has few words, and asks for them again with every example."""
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _decided(pieces: list[int], rivals: list[list[int]]) -> list[bool]:
    """Which pieces of a word are still open, given the pieces before them and the rival words."""
    return [
        any(rival[:i] == pieces[:i] and rival[i : i + 1] != [piece] for rival in rivals)
        for i, piece in enumerate(pieces)
    ]


def _lead(word: Determined, text: str) -> str:
    """The space before a word, which is part of its first token or a token of its own."""
    return " " if text[max(word.start - 1, 0) : word.start] == " " else ""


def determined_tokens(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[DeterminedToken]:
    """Find the tokens of the determined words, and those of their evidence.

    A piece of a determined word counts only if at least one alternative agrees with the word up to that
    piece and differs there. The last pieces of a long word often follow from the first ones; those are
    left out.

    Args:
        example: From `examples`.
        tokenizer: A fast tokenizer, with character offsets.

    Returns:
        One record per decided token, in reading order.
    """
    source = tokenizer(example.prompt, return_offsets_mapping=True)["offset_mapping"]
    target = tokenizer(example.continuation, add_special_tokens=False, return_offsets_mapping=True)
    places: dict[Side, list[Place]] = {"source": source, "prefix": target["offset_mapping"]}
    ids = target["input_ids"]
    found = []
    for word in example.determined:
        lead = _lead(word, example.continuation)
        steps = _touching(places["prefix"], word.start - len(lead), word.stop)
        evidence: tuple[tuple[Side, int], ...] = tuple(
            (span.side, index)
            for span in word.evidence
            for index in _touching(places[span.side], span.start, span.stop)
        )
        rivals = [_pieces(tokenizer, lead + other) for other in word.alternatives]
        decided = _decided([ids[step] for step in steps], rivals)
        found += [
            DeterminedToken(step, word.kind, ids[step], evidence)
            for step, open_piece in zip(steps, decided, strict=True)
            if open_piece
        ]
    return found
