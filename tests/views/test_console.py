"""The terminal view: everything is said, in any width, encoding and colour, whatever the tokens hold."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel

from scores.fakes import OUTPUT, SOURCE, make
from whence.core.errors import InputError
from whence.scores import Attribution, Attributions, Check
from whence.views.console import render

TEXTS = st.text(st.characters(exclude_categories=[]), max_size=8)


def shown(item: Attribution | Attributions, **options: object) -> str:
    """What `show` prints, without colour unless asked for."""
    file = io.StringIO()
    item.show(**{"file": file, "width": 80, "color": False, **options})
    return file.getvalue()


def lines_fit(text: str, width: int) -> bool:
    return all(cell_len(line) <= width for line in text.split("\n"))


@pytest.fixture(scope="module")
def long() -> Attribution:
    return make(tuple(SOURCE.split("|") * 8), tuple(OUTPUT.split("|") * 9)[:100])


def test_it_says_what_was_asked_and_answers() -> None:
    text = shown(make(baseline={"kind": "mean", "norm": 3.25}))
    assert "integrated_gradients of probability · model gpt2" in text
    assert "completeness ok 3.1e-05 (limit 0.02)" in text
    assert "baseline: kind mean, norm 3.25" in text
    assert "+ raises probability, - lowers it" in text
    assert "she was ill and the storm had already flooded the road." in text
    assert "source:" in text
    assert "generated so far:" in text
    assert not re.search(" $", text, re.MULTILINE)


@pytest.mark.parametrize("width", [24, 80])
def test_it_says_what_was_compared(width: int) -> None:
    contrast = {"source": "He left " * 200, "continuation": " because he was ill", "attributed": "both runs together"}
    text = shown(make(contrast=contrast), width=width)
    plain = " ".join(text.split())
    assert "compared with another source and another continuation; the scores are about both runs together:" in plain
    assert "because he was ill" in plain
    assert 40 < plain.count("He left") < 60
    assert lines_fit(text, width)
    itself = shown(make(contrast={"source": None, "continuation": None, "attributed": "this text's run"}))
    assert "compared with the unchanged run" in itself
    assert "compared" not in shown(make())


def test_the_table_holds_every_score() -> None:
    item = make()
    text = shown(item, width=200)
    table = text[text.index("source:") : text.index("scale:")].split("\n")
    rows = {line.split()[0]: line for line in table if line}
    k = next(k for k, token in enumerate(item.tokens) if token.text == " manager")
    cells = rows["manager"].replace("*", " ").split()[1:]
    assert [float(cell) for cell in cells] == pytest.approx(item.scores.values[:, k].tolist(), abs=0.00501)
    assert rows["road"].split()[1:-1] == ["·"] * 11
    # One mark per step, on the score of largest magnitude.
    marked = [float(cell) for cell in re.findall(r"([+-]\d\.\d+)\*", text)]
    strongest = np.nanmax(np.abs(item.scores.values), axis=1)
    assert sorted(map(abs, marked)) == pytest.approx(sorted(strongest.tolist()), abs=0.00501)
    assert "probability" in text


def test_blocks_are_even_and_complete() -> None:
    text = shown(make(), width=80)
    assert "steps 1 to 6 of 12" in text
    assert "steps 7 to 12 of 12" in text
    # A token that no step of a block can see has no row in it.
    first = text[text.index("steps 1 to 6") : text.index("steps 7 to 12")]
    assert "flooded" not in first


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("layout", ["auto", "table", "list"])
@pytest.mark.parametrize("values", [True, False])
def test_two_hundred_tokens_and_a_hundred_steps(long: Attribution, width: int, layout: str, values: bool) -> None:
    text = shown(long, width=width, layout=layout, values=values)
    assert lines_fit(text, width)
    assert "scale: largest magnitude" in text.replace("\n", " ")


def test_long_results_are_a_list(long: Attribution) -> None:
    text = shown(long, top=3)
    rows = re.findall(r"^ *(\d+) (\S+) +(\d\.\d\d)  (.+)$", text, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(1, 101))
    scores = long.scores.values
    for (_, _, probability, found), row, p in zip(rows, scores, long.step_scores["probability"], strict=True):
        assert float(probability) == pytest.approx(p, abs=0.00501)
        named = re.findall(r"#(\d+)(?: \^=)? ([+-]\d+\.\d+)", found)
        expected = np.argsort(-np.abs(np.nan_to_num(row)), kind="stable")[: len(named)]
        assert len(named) == 3
        assert [int(place) - 1 for place, _ in named] == expected.tolist()
        assert [float(score) for _, score in named] == pytest.approx(row[expected].tolist(), abs=0.0501)


def test_what_is_left_out_is_said(long: Attribution) -> None:
    text = shown(long, max_steps=10, max_tokens=30, layout="table")
    assert f"the last {len(long.steps) - 10} steps are not shown" in text
    assert re.search(r"\d+ weaker tokens are not shown \(max_tokens\)", text)
    assert " … " in text
    assert "not shown" not in shown(long, max_steps=None)


def test_failed_checks_are_loud() -> None:
    checks = Check("leak", 0.0, 1e-6, True), Check("completeness", 0.31, 0.02, False, "use more points")
    text = shown(make(checks=checks))
    assert "! unverified: completeness FAILED 0.31 (limit 0.02), use more points" in text
    assert "leak ok 0 (limit 1e-06); completeness FAILED" in text
    assert "unverified" not in shown(make())
    assert "gap 0.1" in shown(make(checks=(Check("gap", 0.1),)))


def test_reductions_and_small_units_are_said() -> None:
    item = make(extra={"layer": 2, "unit": 3}, magnitude=1e-6, default_view={"unit": "sum"})
    text = shown(item)
    assert "reduced for this view: units by sum, then layers by mean" in text
    assert "all scores in units of 1e-" in text


def test_scores_without_negatives_have_no_signs() -> None:
    text = shown(make(signed=False))
    assert "more is more influence" in text
    assert not re.search(r"[+-]\d\.\d\d(?!e)", text)


def test_special_and_fixed_tokens_are_marked() -> None:
    text = shown(make())
    assert "<s> ^=" in text
    assert "^ special token" in text
    assert "= kept fixed" in text
    item = make(("a", " b"), ("c",))
    assert "special token" not in shown(item)
    nameless = replace(item, tokens=(replace(item.tokens[0], text="", special=True), item.tokens[1]))
    assert "<id 0> ^" in shown(nameless)


def test_segments_have_names_in_the_table() -> None:
    item = make(("a", " b"), ("c",))
    tokens = replace(item.tokens[0], segment="document 1"), replace(item.tokens[1], segment="question")
    text = shown(replace(item, tokens=tokens))
    assert "source (document 1):" in text
    assert "source (question):" in text


def test_signs_instead_of_numbers() -> None:
    text = shown(make(), values=False)
    assert re.search(r"home .*---\*", text)
    assert "+++ at least a half" in text
    assert shown(make(), values=False, width=100).count("generated so far:") == 1


@pytest.mark.parametrize("layout", ["table", "list"])
def test_markup_and_escapes_in_tokens_are_only_text(layout: str) -> None:
    pieces = ("[bold red]", "[/]", "\x1b[31m", "\x07", ":smile:", "[link=http://x]", "\u202e", "\\[")
    item = make(pieces, ("[red]", "\x1b]0;title\x07"), model="[blink]m", baseline="[u]\x1b[0m")
    text = shown(item, layout=layout, width=120)
    for piece in ("[bold red]", "[/]", "\\x1b[31m", "\\x07", ":smile:", "[link=http://x]", "\\u202e", "\\["):
        assert piece in text
    assert "model [blink]m" in text
    assert "baseline: [u]\\x1b[0m" in text
    assert all(character.isprintable() or character == "\n" for character in text)
    coloured = shown(item, layout=layout, width=120, color=True)
    # Every escape sequence in coloured output is a style.
    assert "\x1b" not in re.sub(r"\x1b\[[\d;]*m", "", coloured)


@settings(max_examples=60, deadline=None)
@given(
    source=st.lists(TEXTS, max_size=6),
    output=st.lists(TEXTS, min_size=1, max_size=4),
    width=st.sampled_from([20, 40, 80]),
    layout=st.sampled_from(["auto", "table", "list"]),
    encoding=st.sampled_from(["utf-8", "ascii", "latin-1", "cp1252"]),
)
def test_any_text_fits_any_terminal(
    source: list[str], output: list[str], width: int, layout: str, encoding: str
) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    make(tuple(source), tuple(output)).show(file=file, width=width, color=False, layout=layout)
    file.flush()
    assert lines_fit(raw.getvalue().decode(encoding), width)


def test_new_lines_in_the_input_are_seen_and_kept() -> None:
    item = make(("Who", "\n", " am", " I", "?", "\n"), (" you",), seed=3)
    text = shown(item)
    head = text[text.index("input") : text.index("output:")]
    assert re.search(r"Who.*↵.*\n.*am.*I.*\?.*↵.*\n$", head)
    assert not re.search(r"\n\s*\n", head)


def test_wide_characters_keep_columns_straight() -> None:
    item = make(("東京", "は", " big", "です"), ("大都市", "。"))
    table = shown(item)[shown(item).index("source:") :].split("\n\n")[0].splitlines()[1:5]
    ends = {cell_len(line.rstrip("* ")) for line in table}
    assert len(ends) == 1


def test_colour_is_asked_for_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in shown(make(), color=True)
    assert "\x1b[" not in shown(make(), color=False)
    assert "\x1b[" not in shown(make(), color=None)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "38;2" in shown(make(), color=True)
    without = re.sub(r"\x1b\[[\d;]*m", "", shown(make(), color=True))
    cut = slice(0, without.index("scale:"))
    assert without[cut] == shown(make(), color=False)[cut]


def test_several_are_ruled_apart() -> None:
    text = shown(Attributions((make(), make(seed=1))))
    assert "1 of 2" in text
    assert "2 of 2" in text
    assert lines_fit(text, 80)


def test_nothing_to_show() -> None:
    item = make()
    empty = replace(item, scores=item.scores.select("step", []), steps=(), step_scores={"probability": np.empty(0)})
    assert "no steps or no tokens to show" in shown(empty)
    assert "checks:" in shown(empty)
    assert "largest magnitude 0.00" in shown(make(magnitude=0))


def test_render_can_be_placed_in_other_renderables() -> None:
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(Panel(render(make(), layout="list")))
    text = console.file.getvalue()
    assert "strongest tokens" in text
    assert lines_fit(text, 60)


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="layout is 'auto', 'table' or 'list', not 'grid'"):
        shown(make(), layout="grid")
    with pytest.raises(InputError, match="top must be at least 1, not 0"):
        shown(make(), top=0)
