"""Token ids with the text they stand for. Nothing here runs a model, and nothing is re-tokenised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from whence.core.errors import InputError
from whence.core.tokens import Side, Token

Span = tuple[int, int]

# Tokens of context that are decoded together with a new one: enough for any character that
# several tokens share, and for tokenizers whose decoder looks at its left neighbour.
_WINDOW = 8
# What decoders write for bytes that are no character, or not one yet.
_BROKEN = "\ufffd"
# A character has at most four bytes, so at most four tokens share it.
_SHARED = 4


@dataclass(frozen=True)
class Encoded:
    """One side of a sequence: ids, and the span of text that each id stands for.

    Attributes:
        ids: Token ids.
        text: The text of this side, without special tokens.
        pieces: For each id, the characters it adds to the text, and for a special token its name. They
            join to `text`, special tokens left out; a character that several ids share stands with the
            one that completes it.
        spans: For each id, start and stop in `text`, in ascending order; None for an id without characters.
            A special token has a span only where the given text spells it out (or an unknown word stands).
        segments: For each id, the name of the segment that holds it.
        special: For each id, whether the tokenizer flags it as special.
    """

    ids: tuple[int, ...]
    text: str
    pieces: tuple[str, ...]
    spans: tuple[Span | None, ...]
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
        One string per id: the name of a special token; empty while a character is incomplete, whole with
        the id that completes it. Bytes that never become a character are shown as U+FFFD.
    """
    if tokenizer is None:
        return [f" {token_id}" for token_id in ids]
    names = special_names(tokenizer)
    lead = [token_id for token_id in before if token_id not in names]
    plain = [*lead, *(token_id for token_id in ids if token_id not in names)]
    texts = iter(_growth(tokenizer, plain, len(lead)))
    return [names[token_id] if token_id in names else next(texts) for token_id in ids]


def _growth(tokenizer: Any, ids: Sequence[int], lead: int) -> list[str]:
    """What each id after the first ``lead`` adds, decoding a few ids at a time so that the work is linear."""

    def decode(start: int, stop: int) -> str:
        some = list(ids[start:stop])
        return tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    begin = first = _between_characters(decode, max(0, lead - _WINDOW), len(ids))
    known, waiting = "", 0
    sound = [first]
    texts: dict[int, str] = {}

    def text_to(end: int) -> str:
        if end not in texts:
            texts[end] = decode(first, end)
        return texts[end]

    pieces: list[str] = []
    for end in range(first + 1, len(ids) + 1):
        text = text_to(end)
        ahead = range(end + 1, min(end + _SHARED, len(ids) + 1))
        if waiting < _SHARED - 1 and text.endswith(_BROKEN) and _still_open(text, [text_to(k) for k in ahead]):
            # Blanks in front of the character wait with it; anything visible is this token's own.
            sure = text.rstrip(_BROKEN)
            own = sure[len(known) :] if sure.startswith(known) else ""
            pieces.append(own if own.strip() else "")
            known = sure if own.strip() else known
            waiting += 1
            continue
        pieces.append(text[len(known) :] if text.startswith(known) else decode(end - 1 - waiting, end))
        known, waiting = text, 0
        sound.append(end)
        if end - first > 4 * _WINDOW:
            # Starting inside a character would break it, and every byte token of the run after it.
            first = max(place for place in sound if place <= end - _WINDOW)
            sound = [place for place in sound if place >= first]
            texts.clear()
            known = text_to(end)
    return pieces[lead - begin :]


def _still_open(text: str, later: Sequence[str]) -> bool:
    """Whether the broken end of a text is the beginning of a character that the next ids complete."""
    return bool(later) and (later[0] == text or not all(one.startswith(text) for one in later))


def _between_characters(decode: Callable[[int, int], str], first: int, count: int) -> int:
    """The nearest place at or before ``first`` where no character is cut; ``first`` if there is none."""
    for place in range(first, max(first - _SHARED, -1), -1):
        ends = range(place + 1, min(place + _SHARED, count) + 1)
        if not ends or any(not decode(place, end).startswith(_BROKEN) for end in ends):
            return place
    return first


def encode_ids(tokenizer: Any, ids: Sequence[int], *, before: Sequence[int] = (), segment: str = "") -> Encoded:
    """View ids as text, by decoding them; the ids stay as they are.

    Args:
        tokenizer: A transformers tokenizer, or None.
        ids: The ids.
        before: Ids in front of them.
        segment: Name of the segment they form.

    Returns:
        The ids with text and spans.
    """
    ids = [int(token_id) for token_id in ids]
    names = special_names(tokenizer)
    text = ""
    pieces: list[str] = []
    spans: list[Span | None] = []
    for token_id, piece in zip(ids, decode_pieces(tokenizer, ids, before), strict=True):
        if token_id in names:
            pieces.append(names[token_id])
            spans.append(None)
            continue
        pieces.append(piece)
        spans.append((len(text), len(text) + len(piece)) if piece else None)
        text += piece
    return Encoded(
        tuple(ids),
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
        Ids with spans in ``text`` (fast tokenizers), or in the decoded text (slow ones). Every character
        belongs to one token: white space to the token after it, other characters that the tokenizer drops
        to the token before, and a character that several tokens share to the last of them.

    Raises:
        InputError: The text holds half of a character (a lone surrogate).
    """
    check_text(text, "the text")
    if not tokenizer.is_fast:
        return encode_ids(tokenizer, tokenizer(text, add_special_tokens=special_tokens)["input_ids"])
    encoding = tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True)
    ids = tuple(encoding["input_ids"])
    names = special_names(tokenizer)
    special = tuple(token_id in names for token_id in ids)
    spans = _disjoint(text, _with_white_space(text, encoding["offset_mapping"], special))
    pieces = tuple(
        names[token_id] if token_id in names else "" if span is None else text[slice(*span)]
        for token_id, span in zip(ids, spans, strict=True)
    )
    return Encoded(ids, text, pieces, tuple(spans), ("",) * len(ids), special)


def _with_white_space(text: str, offsets: Sequence[Span], special: Sequence[bool]) -> list[Span]:
    """Give tokens of white space their characters back, where the tokenizer trims offsets (as RoBERTa's)."""
    widened: list[Span] = []
    done = 0
    for (start, stop), flagged in zip(offsets, special, strict=True):
        if start == stop and not flagged:
            start = min(stop, done + len(text[done:stop].rstrip()))
        widened.append((start, stop))
        done = max(done, stop)
    return widened


def _disjoint(text: str, offsets: Sequence[Span]) -> list[Span | None]:
    """Spans that cover the text once, from offsets that may overlap (shared characters) and leave gaps."""
    spans: list[Span | None] = [None] * len(offsets)
    shown = [index for index, (start, stop) in enumerate(offsets) if start < stop]
    done = 0
    for index, following in zip_longest(shown, shown[1:]):
        if following is None:
            cut = len(text)
        else:
            stop, start = offsets[index][1], offsets[following][0]
            cut = max(done, start if start <= stop else stop + len(text[stop:start].rstrip()))
            if start < stop and text[done:cut].isspace():
                # Blanks in front of a character that the next token shares go with the character.
                cut = done
        if cut > done:
            spans[index] = (done, cut)
        done = cut
    return spans


def whole_numbers(values: Any) -> list[int] | None:
    """The values as a list of Python integers, or None if they are anything else (truth values included).

    Args:
        values: A list, a tuple, a range, or a one-dimensional array or tensor.
    """
    if isinstance(values, str | bytes | bytearray | memoryview):
        return None
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, Sequence):
        return None
    numbers = [whole_number(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]


def whole_number(value: Any) -> int | None:
    """The value as a Python integer, or None if it is not one; numpy's and torch's integers are."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


def check_text(text: str, what: str) -> None:
    """Refuse text that no tokenizer can read.

    Args:
        text: The text.
        what: Where it comes from, for the message.

    Raises:
        InputError: It holds half of a character (a lone surrogate).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what}: place {error.start} holds {text[error.start]!r}, half of a character (a lone surrogate). "
            "Was it read with errors='surrogateescape'?"
        ) from None


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


def special_names(tokenizer: Any) -> dict[int, str]:
    """The ids that a tokenizer flags as special, with their names."""
    if tokenizer is None:
        return {}
    ids = tokenizer.all_special_ids
    names = dict(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))
    if tokenizer.is_fast:
        # Marks of a chat template are often special without a role that `all_special_ids` knows.
        names |= {i: one.content for i, one in tokenizer.added_tokens_decoder.items() if one.special}
    return names
