"""Token ids with the text they stand for. Nothing here runs a model, and nothing is re-tokenised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whence.core.errors import InputError
from whence.core.tokens import Side, Token

# Tokens of context that are decoded together with a new one: enough for any character that
# several tokens share, and for tokenizers whose decoder looks at its left neighbour.
_WINDOW = 8


@dataclass(frozen=True)
class Encoded:
    """One side of a sequence: ids, and the span of text that each id stands for.

    Attributes:
        ids: Token ids.
        text: The text of this side, without special tokens.
        pieces: For each id, the characters it adds to the text, and for a special token its name. They
            join to `text`, special tokens left out; a character that several ids share stands with the
            one that completes it.
        spans: For each id, start and stop in `text`; None for an id without characters.
        segments: For each id, the name of the segment that holds it.
        special: For each id, whether the tokenizer flags it as special.
    """

    ids: tuple[int, ...]
    text: str
    pieces: tuple[str, ...]
    spans: tuple[tuple[int, int] | None, ...]
    segments: tuple[str, ...]
    special: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def tokens(self, side: Side) -> tuple[Token, ...]:
        """The tokens of this side, each with its text, span, segment and flags.

        Args:
            side: ``"source"`` or ``"prefix"``.

        Returns:
            One `Token` per id.
        """
        rows = zip(self.ids, self.pieces, self.spans, self.segments, self.special, strict=True)
        return tuple(
            Token(token_id, piece, *(span or (None, None)), side, segment or side, special)
            for token_id, piece, span, segment, special in rows
        )


def decode_pieces(tokenizer: Any, ids: Sequence[int], before: Sequence[int] = ()) -> list[str]:
    """The text that each id adds to what stands before it.

    Args:
        tokenizer: A transformers tokenizer, or None (ids are then shown as numbers).
        ids: Ids to view as text.
        before: Ids in front of them, which decide about leading spaces.

    Returns:
        One string per id; empty while a character is incomplete, whole with the id that completes it.
    """
    if tokenizer is None:
        return [f" {token_id}" for token_id in ids]

    def decode(some: Sequence[int]) -> str:
        return tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    everything = [*before, *ids]
    first = max(0, len(before) - _WINDOW)
    known = decode(everything[first : len(before)]) if before else ""
    pieces: list[str] = []
    for end in range(len(before) + 1, len(everything) + 1):
        text = decode(everything[first:end])
        incomplete = text.endswith("\ufffd") and end < len(everything)
        if incomplete:
            pieces.append("")
            continue
        pieces.append(text[len(known) :] if text.startswith(known) else decode(everything[end - 1 : end]))
        known = text
        if end - first > 4 * _WINDOW:
            first = end - _WINDOW
            known = decode(everything[first:end])
    return pieces


def encode_ids(
    tokenizer: Any, ids: Sequence[int], *, before: Sequence[int] = (), segment: str = ""
) -> Encoded:
    """View ids as text, by decoding them; the ids stay as they are.

    Args:
        tokenizer: A transformers tokenizer, or None.
        ids: The ids.
        before: Ids in front of them.
        segment: Name of the segment they form.

    Returns:
        The ids with text and spans.
    """
    names = _special_names(tokenizer)
    text = ""
    pieces: list[str] = []
    spans: list[tuple[int, int] | None] = []
    for token_id, piece in zip(ids, decode_pieces(tokenizer, ids, before), strict=True):
        if token_id in names:
            pieces.append(names[token_id])
            spans.append(None)
            continue
        pieces.append(piece)
        spans.append((len(text), len(text) + len(piece)) if piece else None)
        text += piece
    return Encoded(
        tuple(int(i) for i in ids),
        text,
        tuple(pieces),
        tuple(spans),
        (segment,) * len(ids),
        tuple(i in names for i in ids),
    )


def encode_text(tokenizer: Any, text: str, *, special_tokens: bool = True) -> Encoded:
    """Tokenise a text once, keeping the span of characters of every token.

    Args:
        tokenizer: A transformers tokenizer.
        text: The text.
        special_tokens: Let the tokenizer add its begin and end tokens.

    Returns:
        Ids with spans in ``text`` (fast tokenizers), or in the decoded text (slow ones). White space
        in front of a token belongs to it.
    """
    if not tokenizer.is_fast:
        return encode_ids(tokenizer, tokenizer(text, add_special_tokens=special_tokens)["input_ids"])
    encoding = tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True)
    ids = encoding["input_ids"]
    names = _special_names(tokenizer)
    offsets = encoding["offset_mapping"]
    pieces: list[str] = []
    spans: list[tuple[int, int] | None] = []
    done = 0
    for index, (token_id, (start, stop)) in enumerate(zip(ids, offsets, strict=True)):
        if start == stop:
            pieces.append(names.get(token_id, ""))
            spans.append(None)
            continue
        start = done if start > done and text[done:start].isspace() else start
        spans.append((start, stop))
        if token_id in names:
            pieces.append(names[token_id])
            done = stop
        elif index + 1 < len(ids) and tuple(offsets[index + 1]) == (start, stop):
            pieces.append("")
        else:
            pieces.append(text[max(done, start) : stop])
            done = max(done, stop)
    special = tuple(token_id in names for token_id in ids)
    return Encoded(tuple(ids), text, tuple(pieces), tuple(spans), ("",) * len(ids), special)


def check_ids(ids: Sequence[int], vocab_size: int, what: str) -> None:
    """Refuse ids that the model has no embedding for.

    Args:
        ids: The ids.
        vocab_size: Rows of the model's embedding matrix.
        what: Where the ids come from, for the message.

    Raises:
        InputError: An id is negative or too large; it is named with its place.
    """
    for index, token_id in enumerate(ids):
        if not 0 <= token_id < vocab_size:
            raise InputError(
                f"{what}: id {token_id} at place {index} is outside the model's vocabulary of {vocab_size} "
                f"(0 to {vocab_size - 1}). Is this the tokenizer that belongs to the model?"
            )


def _special_names(tokenizer: Any) -> dict[int, str]:
    if tokenizer is None:
        return {}
    ids = tokenizer.all_special_ids
    return dict(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))
