"""Tokens and scores as plain text: nothing hidden, nothing that a terminal would obey."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from whence.views.visible import Scale, fit, glyphs_for, visible

UTF, ASCII = glyphs_for("utf-8"), glyphs_for("ascii")
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=12)


@pytest.mark.parametrize(
    ("text", "utf", "ascii_"),
    [
        (" cat", "cat", "cat"),
        ("cat", "cat", "cat"),
        (" ", "␣", "_"),
        ("  a ", "␣␣a␣", "__a_"),
        ("\n", "↵", "\\n"),
        ("\t\r", "⇥\\x0d", "\\t\\x0d"),
        ("\x1b[31mred", "\\x1b[31mred", "\\x1b[31mred"),
        ("a\u202eb", "a\\u202eb", "a\\u202eb"),
        ("\ud800", "\\ud800", "\\ud800"),
        ("\x9b1m", "\\x9b1m", "\\x9b1m"),
        ("é", "é", "\\xe9"),
        ("東京", "東京", "\\u6771\\u4eac"),
        ("\u0301x", "◌\u0301x", "\\u0301x"),
        ("\u200d", "\\u200d", "\\u200d"),
        ("", "", ""),
        ("[bold]x[/]", "[bold]x[/]", "[bold]x[/]"),
    ],
)
def test_visible(text: str, utf: str, ascii_: str) -> None:
    assert visible(text, UTF) == utf
    assert visible(text, ASCII) == ascii_


def test_running_text_keeps_spaces_and_breaks_lines() -> None:
    assert visible(" a\n b ", UTF, running=True) == " a↵\n b "


@given(TEXTS, st.booleans())
def test_anything_can_be_printed(text: str, running: bool) -> None:
    for glyphs in (UTF, ASCII, glyphs_for("latin-1")):
        shown = visible(text, glyphs, running=running)
        shown.encode(glyphs.encoding)
        assert shown.replace("\n" if running else "", "").isprintable() or "\u200d" in text or "\u200c" in text
        assert cell_len(shown) or not text


@given(TEXTS, st.integers(0, 15), st.booleans())
def test_fit_is_exact(text: str, width: int, right: bool) -> None:
    for glyphs in (UTF, ASCII):
        assert cell_len(fit(visible(text, glyphs), width, glyphs, right=right)) == width


def test_cut_text_says_so() -> None:
    assert fit("flooded", 5, UTF) == "floo…"
    assert fit("flooded", 5, ASCII) == "floo~"
    assert fit("東京都", 4, UTF) == "東 …"
    assert fit("a", 3, UTF, right=True) == "  a"


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0.52, -0.1, 0.001, 0], ["+0.52", "-0.10", "0", "0"]),
        ([0.52, 0.004], ["0.52", "0"]),
        ([12.34, -0.2], ["+12.3", "-0.2"]),
        ([0.0345, -0.01], ["+3.45", "-1.00"]),
        ([4567, 100], ["4.57", "0.10"]),
        ([0, 0], ["0", "0"]),
        ([1e-45], ["1.40"]),
    ],
)
def test_scale_writes_few_digits(values: list[float], written: list[str]) -> None:
    scale = Scale.of(np.array([*values, np.nan], dtype=np.float32))
    assert [scale.write(v) for v in np.float32(values).tolist()] == written


def test_levels_signs_and_colours() -> None:
    scale = Scale.of(np.array([1.0, -1.0]))
    values = [0.04, 0.1, -0.3, 0.6, -1.0]
    assert [scale.level(v) for v in values] == [0, 1, 2, 3, 3]
    assert [scale.signs(v) for v in values] == ["", "+", "--", "+++", "---"]
    assert scale.style(0.1).color != scale.style(-0.1).color
    assert scale.style(0.6).bgcolor
    assert Scale.of(np.array([np.nan])).level(0.0) == 0
