"""What kind of thing a token's string is: the beginning of a word or a piece of one, in which case and script, ...

Only strings are looked at, so that the classes of a tokenizer are the same on every machine. A token takes another's
place in a text with the least disturbance if both are of one class.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence, Set
from dataclasses import dataclass

# How a token says that it begins a word: as byte-level tokenizers write a blank, as SentencePiece does; or, with the
# third, that it does not.
_BYTES, _BLANK, _PIECE = "Ġ", "▁", "##"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
NEVER = -1


@dataclass(frozen=True)
class LexicalClasses:
    """The lexical class of every id of a tokenizer.

    Attributes:
        names: What the classes are called, such as ``"word lower latin"``.
        of: For every id, the number of its class, or -1 where it has none.
        texts: For every id, its characters, without the tokenizer's marks and without blanks in front.
        starts: For every id, whether it begins a word.
    """

    names: tuple[str, ...]
    of: tuple[int, ...]
    texts: tuple[str, ...]
    starts: tuple[bool, ...]


def lexical_classes(tokens: Sequence[str | None], special: Set[int]) -> LexicalClasses:
    """Sort the tokens of a vocabulary into classes.

    Args:
        tokens: For every id, the tokenizer's own string, such as ``"Ġthe"``; None where there is none.
        special: Ids that have no class, as those of begin and end.

    Returns:
        The classes, numbered by their names in alphabetical order.
    """
    mark = _mark(tokens)
    values = _byte_values() if mark == _BYTES else {}
    read = [("", True) if one is None else _read(one, mark, values) for one in tokens]
    kinds = [
        None if token is None or number in special else _kind(text, starts)
        for number, (token, (text, starts)) in enumerate(zip(tokens, read, strict=True))
    ]
    names = sorted({kind for kind in kinds if kind is not None})
    numbers = {name: number for number, name in enumerate(names)}
    return LexicalClasses(
        tuple(names),
        tuple(NEVER if kind is None else numbers[kind] for kind in kinds),
        tuple(text.lstrip(" ") or text for text, _ in read),
        tuple(starts for _, starts in read),
    )


def _mark(tokens: Sequence[str | None]) -> str:
    """The mark of words that most tokens begin with; none where every token is a word."""
    marks = (_BYTES, _BLANK, _PIECE)
    counts = [sum(one is not None and one.startswith(mark) for one in tokens) for mark in marks]
    most = max(counts)
    return marks[counts.index(most)] if most else ""


def _byte_values() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (the table of GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + k): byte for k, byte in enumerate(others)}


def _read(token: str, mark: str, values: dict[str, int]) -> tuple[str, bool]:
    """The text of a token, and whether it begins a word. Bytes that are no text read as U+FFFD."""
    if mark == _BYTES:
        known = all(char in values for char in token)
        text = bytes(values[char] for char in token).decode("utf-8", "replace") if known else token
        return text, text.startswith(" ")
    if mark == _BLANK:
        byte = _BYTE.fullmatch(token)
        text = bytes([int(byte[1], 16)]).decode("utf-8", "replace") if byte else token.replace(_BLANK, " ")
        return text, token.startswith(_BLANK)
    if mark == _PIECE:
        return token.removeprefix(_PIECE), not token.startswith(_PIECE)
    return token, True


def _kind(text: str, starts: bool) -> str:
    """The class of a text."""
    if not text or "\ufffd" in text:
        return "bytes"
    if text.isspace():
        return "newline" if "\n" in text or "\r" in text else "space"
    letters = [char for char in text if char.isalpha() or unicodedata.category(char).startswith("M")]
    if letters:
        return f"{'word' if starts else 'piece'} {_case(letters)} {_script(letters[0])}"
    if any(char.isdigit() for char in text):
        return "digits"
    marks = [char for char in text if not char.isspace()]
    return "punctuation" if all(unicodedata.category(char).startswith("P") for char in marks) else "symbol"


def _case(letters: Sequence[str]) -> str:
    cased = [char for char in letters if char.lower() != char.upper()]
    high = [char != char.lower() for char in cased]
    if not cased:
        return "caseless"
    if not any(high):
        return "lower"
    if all(high) and len(cased) > 1:
        return "upper"
    return "capitalised" if high[0] and not any(high[1:]) else "mixed"


def _script(char: str) -> str:
    """The script of a letter: the first word of its name in Unicode, such as ``latin`` or ``cjk``."""
    return unicodedata.name(char, "unnamed").split(" ")[0].lower()
