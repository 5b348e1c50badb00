"""What the benchmarks of speed run on, and what they write: models, texts, tables, pictures."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import bench_models, memory, report, scaling
from benchmarks.bench_models import make_model, make_text, word_tokenizer
from benchmarks.plot import Panel, exponent, picture
from rules import ROOT


@settings(deadline=None, max_examples=25)
@given(st.integers(20, 400), st.integers(1, 60), st.integers(1, 60))
def test_a_text_is_read_as_it_was_made(size, source, generated):
    tokenizer = word_tokenizer(size)
    text = make_text(tokenizer, source, generated)
    assert tuple(tokenizer(text.prompt)["input_ids"]) == text.source
    assert tuple(tokenizer(text.continuation)["input_ids"]) == text.generated
    assert (len(text.source), len(text.generated)) == (source, generated)
    assert min(text.source + text.generated) > 3
    assert make_text(tokenizer, source, generated) == text


def test_sizes_are_those_of_the_known_models():
    import transformers

    sizes = {}
    for name, (kind, config) in bench_models.SIZES.items():
        found = transformers.AutoConfig.for_model(kind, **config)
        sizes[name] = (found.hidden_size, found.num_hidden_layers, found.num_attention_heads, found.vocab_size)
    assert sizes["gpt2"] == (768, 12, 12, 50257)
    assert sizes["llama"] == (768, 12, 12, 32000)
    assert sizes["t5"] == (512, 6, 8, 32128)
    assert sizes["long"][:2] == (512, 2)
    assert set(bench_models.QUICK) == set(bench_models.SIZES)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="neither one of gpt2"):
        make_model("gpt3", tmp_path)


# Tables and pictures.


def test_page_is_written_between_its_marks():
    first, last = report.marks("speed")
    page = f"before\n{first}\nold\n{last}\nafter\n"
    assert report.written(page, "new", "speed") == f"before\n{first}\nnew\n{last}\nafter\n"


@settings(max_examples=30)
@given(st.text(), st.text(), st.text(alphabet=st.characters(exclude_characters="<")))
def test_writing_twice_is_writing_once(before, after, block):
    first, last = report.marks("speed")
    page = f"{before}{first}\n{last}{after}"
    once = report.written(page, block, "speed")
    assert report.written(once, block, "speed") == once
    assert once.startswith(before)
    assert once.endswith(after)


@pytest.mark.parametrize("page", ["", "{0}", "{1}", "{1}{0}", "{0}{1}{0}{1}"])
def test_page_without_marks_is_refused(page):
    with pytest.raises(ValueError, match="each once"):
        report.written(page.format(*report.marks("speed")), "new", "speed")


@pytest.mark.parametrize("name", ["limit", "memory", "peers", "profile", "scaling", "startup"])
def test_the_page_of_performance_has_a_place_for_every_table(name):
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "| new |" in report.written(page, "| new |", name)
    assert f"benchmarks.{name} --write" in page


def test_table_has_a_cell_for_every_head():
    assert report.table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n|---|---:|\n| x/y | 1 |"
    with pytest.raises(ValueError, match="2 cells"):
        report.table(["a", "b"], [["x"]])


def test_numbers_are_short():
    assert [report.seconds(value) for value in (0.01234, 1.5, 2345.6)] == ["12.3 ms", "1.5 s", "2,346 s"]
    assert [report.times(value) for value in (0.5, 20.04, 1234.0)] == ["0.5x", "20x", "1,234x"]
    assert report.mebibytes(3 * 2**30) == "3,072 MiB"


def test_the_machine_is_named_without_its_paths():
    note = report.machine_note(report.machine("cpu", "float32"))
    assert f"torch {torch.__version__}" in note
    assert "/" not in note


@given(st.floats(-3, 3), st.floats(0.01, 100), st.lists(st.integers(1, 10**4), min_size=2, max_size=8, unique=True))
def test_exponent_of_a_power_law(power, scale, places):
    assert exponent([(x, scale * x**power) for x in places]) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize("points", [[(1, 2)], [(1, 2), (1, 3)], [(1, 0), (2, 1)]])
def test_no_exponent_without_a_line(points):
    with pytest.raises(ValueError, match="two places"):
        exponent(points)


def test_picture_has_every_point_and_name():
    panel = Panel("a < b", "tokens", "seconds", {"one": [(1, 2), (2, 4)], "two": [(1, 1), (10, 1), (20, 3)]})
    drawn = ElementTree.fromstring(picture([panel, panel]))
    space = "{http://www.w3.org/2000/svg}"
    assert len(list(drawn.iter(f"{space}circle"))) == 10
    assert {"a < b", "one", "two", "tokens", "seconds"} <= {text.text for text in drawn.iter(f"{space}text")}
    with pytest.raises(ValueError, match="nothing to draw"):
        picture([])


MACHINE = {
    "processor": "a machine",
    "threads": 2,
    "load": None,
    "dtype": "float32",
    "versions": {"whence": "1", "python": "3"},
}


def test_an_estimate_is_near_within_a_quarter():
    lines = [memory.Line("call", "case", 100, estimated, 0, 1.0) for estimated in (74, 75, 100, 125, 126)]
    assert [line.near for line in lines] == [False, True, True, True, False]
    assert "3 of 5 estimates are within 25%" in memory.markdown({"estimate": lines}, MACHINE)


def test_ten_configurations_are_estimated():
    calls = memory.estimated_calls(["gpt2", "llama"], quick=False)
    assert len({(call.name, call.case) for call in calls}) == 10


def test_segments_cover_the_prompt():
    assert memory.segments(9, 2) == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]


def test_scaling_changes_one_thing_at_a_time():
    for axis, values in scaling.VALUES.items():
        for value, size in zip(values, scaling.sizes_of(axis, values), strict=True):
            assert getattr(size, axis) == value
            changed = [name for name in vars(size) if getattr(size, name) != getattr(scaling.USUAL[axis], name)]
            assert changed in ([], [axis])
