"""The texts that tokenizers' own spellings stand for, where there is no tokenizer to ask.

Inseq saves tokens as the vocabulary spells them: ``Ġmanager`` (bytes as printable characters), ``▁manager``
(sentencepiece), ``##er`` (word pieces) or plain words. The text they came from stands in the same file, which settles
where spaces are.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whence.core.tokens import Side, Token

_SPECIAL = re.compile(r"<(?!0x)[^<>\s]+>|\[[A-Z]+\]|>>\w+<<")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Piece:
    """A token as the vocabulary spells it, and its id; -1 where it stands for several."""

    id: int
    spelling: str


def tokens_of(pieces: Sequence[Piece], text: str | None, *, split: int) -> tuple[Token, ...]:
    """Tokens with the text that each stands for.

    Args:
        pieces: The tokens of one stream.
        text: The text they came from, if it is known.
        split: How many of them are of the source; the places of the others are counted from its end.

    Returns:
        One token per piece; with places in the text of its side where it was found there.
    """
    spellings = [piece.spelling for piece in pieces]
    special = [bool(_SPECIAL.fullmatch(spelling)) for spelling in spellings]
    texts = list(_readings(spellings, special))
    spans = _places(texts, special, text or "")
    inner = max((span[1] for span in spans[:split] if span is not None), default=0)
    made = []
    for k, (piece, reading, span) in enumerate(zip(pieces, texts, spans, strict=True)):
        side: Side = "source" if k < split else "prefix"
        shift = inner if side == "prefix" else 0
        start, stop = (None, None) if span is None else (span[0] - shift, span[1] - shift)
        shown = reading if span is None else (text or "")[span[0] : span[1]]
        made.append(Token(piece.id, shown, start, stop, side, side, special[k]))
    return tuple(made)


def _readings(spellings: Sequence[str], special: Sequence[bool]) -> Iterable[str]:
    """What every spelling says by itself; an unfinished character stands with the token that completes it."""
    ordinary = [one for one, odd in zip(spellings, special, strict=True) if not odd]
    by_bytes = any(mark in one for one in ordinary for mark in "ĠĊ")
    by_pieces = any(one.startswith("##") for one in ordinary)
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    for spelling, odd in zip(spellings, special, strict=True):
        if odd:
            yield spelling
        elif by_bytes and all(char in _BYTES for char in spelling):
            yield decode(bytes(_BYTES[char] for char in spelling))
        elif found := _BYTE.fullmatch(spelling):
            yield decode(bytes([int(found[1], 16)]))
        elif by_pieces:
            yield spelling.removeprefix("##") if spelling.startswith("##") else f" {spelling}"
        else:
            yield spelling.replace("▁", " ")


def _places(texts: Sequence[str], special: Sequence[bool], text: str) -> list[tuple[int, int] | None]:
    """Where the readings stand in the text, one after the other with nothing but blanks between them."""
    found: list[tuple[int, int] | None] = []
    at = 0
    for reading, odd in zip(texts, special, strict=True):
        core = reading.strip()
        begin = at + len(text[at:]) - len(text[at:].lstrip())
        if core and not odd and text.startswith(core, begin):
            found.append((at, begin + len(core)))
            at = begin + len(core)
        else:
            found.append(None)
    return found


def _byte_table() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


_BYTES = _byte_table()
