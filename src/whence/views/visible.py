"""How tokens and scores look in a line of plain text, whatever they contain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from unicodedata import category, combining

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.style import Style

# Orange and blue differ for every common kind of colour blindness; both can be read on black and on white.
POSITIVE, NEGATIVE = "#d9730d", "#3b82d9"
WEAK, MEDIUM, STRONG = 0.05, 0.25, 0.5


def _ramp(colour: str, ink: str) -> tuple[Style, ...]:
    strong = Style(color=ink, bgcolor=colour, bold=True)
    return Style(dim=True), Style(color=colour), Style(color=colour, bold=True), strong


RAISING, LOWERING = _ramp(POSITIVE, "#000000"), _ramp(NEGATIVE, "#ffffff")


@dataclass(frozen=True)
class Glyphs:
    """The symbols of a view, in the reach of the output's encoding."""

    encoding: str
    space: str
    newline: str
    tab: str
    undefined: str
    ellipsis: str
    earlier: str
    dot: str
    circle: str


def glyphs_for(encoding: str) -> Glyphs:
    """Unicode symbols where they can be written, else ASCII ones."""
    if encoding.lower().replace("_", "-").startswith("utf"):
        return Glyphs("utf-8", "␣", "↵", "⇥", "·", "…", "»", " · ", "◌")
    return Glyphs(encoding, "_", "\\n", "\\t", ".", "~", ">", " | ", "")


def visible(text: str, glyphs: Glyphs, *, running: bool = False) -> str:
    """A token's text as characters that can be seen and that do nothing to a terminal.

    Control, direction and unassigned characters are written as escapes; white space gets a symbol, except
    the one space with which most tokens begin a word.

    Args:
        text: The token's text.
        glyphs: Symbols to use.
        running: The token stands in running text: spaces stay, and a new line is begun after its symbol.
    """
    shown = "".join(_safe(character, glyphs, running) for character in text)
    if not running:
        bare = shown[1:] if len(shown) > 1 and shown[0] == " " != shown[1] else shown
        left, right = len(bare) - len(bare.lstrip(" ")), len(bare) - len(bare.rstrip(" "))
        core = bare[left : len(bare) - right] if left < len(bare) else ""
        shown = glyphs.space * left + core + (glyphs.space * right if core else "")
        if shown and combining(shown[0]):
            shown = glyphs.circle + shown
        if shown and not cell_len(shown):
            shown = "".join(_escape(character) for character in text)
    return shown.encode(glyphs.encoding, "backslashreplace").decode(glyphs.encoding)


def _safe(character: str, glyphs: Glyphs, running: bool) -> str:
    if character == "\n":
        return glyphs.newline + "\n" * running
    if character == "\t":
        return glyphs.tab
    kind = category(character)
    # Joiners are format characters too, but Persian, Indic scripts and emoji cannot be read without them.
    if character == " " or character in "\u200c\u200d" or kind[0] not in "CZ":
        return character
    return _escape(character)


def _escape(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if character > "\x7f" else _hex(character)


def _hex(character: str) -> str:
    return f"\\x{ord(character):02x}"


def fit(text: str, width: int, glyphs: Glyphs, *, right: bool = False) -> str:
    """Text cut or padded to exactly ``width`` terminal cells."""
    if cell_len(text) > width:
        text = set_cell_size(text, max(width - cell_len(glyphs.ellipsis), 0)) + glyphs.ellipsis
    pad = " " * (width - cell_len(text))
    return set_cell_size(pad + text if right else text + pad, width)


@dataclass(frozen=True)
class Scale:
    """How scores of one attribution are written and coloured: all by the same largest magnitude.

    Attributes:
        peak: Largest magnitude.
        signed: Some score is negative, so every score carries its sign.
        unit: Scores are divided by this before they are written.
        decimals: Digits after the point.
    """

    peak: float
    signed: bool
    unit: float
    decimals: int

    @classmethod
    def of(cls, values: np.ndarray) -> Scale:
        """The scale that suits some scores; NaN is left out."""
        known = values[~np.isnan(values)].astype(np.float64)
        peak = float(np.abs(known).max(initial=0.0))
        signed = bool((known < 0).any())
        if peak == 0 or 0.1 <= peak < 100:
            return cls(peak, signed, 1.0, 1 if peak >= 10 else 2)
        return cls(peak, signed, 10.0 ** math.floor(math.log10(peak)), 2)

    def write(self, value: float) -> str:
        """A score in few characters; ``0`` for one that rounds to nothing."""
        text = f"{value / self.unit:{'+' if self.signed else ''}.{self.decimals}f}"
        return "0" if float(text) == 0 else text

    def level(self, value: float) -> int:
        """From 0 (next to nothing) to 3 (at least half of the largest magnitude)."""
        share = abs(value) / self.peak if self.peak else 0.0
        return int(sum(share >= bound for bound in (WEAK, MEDIUM, STRONG)))

    def signs(self, value: float) -> str:
        """The level in signs: ``+++`` for a strong positive score, ``-`` for a weak negative one."""
        return ("-" if value < 0 else "+") * self.level(value)

    def style(self, value: float) -> Style:
        """Dim, coloured, bold, or on a coloured ground, by level."""
        return (LOWERING if value < 0 else RAISING)[self.level(value)]
