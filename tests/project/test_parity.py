"""The parity table of the documentation: nothing is missing from it without a reason, and nothing differs."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

import whence
from benchmarks.parity import CALLS, PLACES, TOLERANCE, Line, absent, main, measure, merged, table
from benchmarks.parity_models import NAMES, make_models
from rules import ROOT

KEPT = ROOT / "docs" / "parity.json"
LINES = [Line(**one) for one in json.loads(KEPT.read_text(encoding="utf-8"))["lines"]]


def test_every_method_of_the_library_is_compared():
    assert set(CALLS) == set(whence.METHODS)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", NAMES)
def test_every_line_is_there_or_a_reason(model, place):
    found = {line.method for line in LINES if (line.model, line.place) == (model, place)}
    reasons = {method: absent(model, place, method) for method in CALLS}
    wanted = {method for method, reason in reasons.items() if not reason}
    assert found == wanted, f"python -m benchmarks.parity --places {place} --write docs/parity.json"
    assert all(len(reason) > 20 for reason in reasons.values() if reason)


def test_reasons_are_exceptions():
    """Every method runs somewhere else than here, and where a method has no line, others have."""
    for method in CALLS:
        assert any(not absent("llama", place, method) for place in ("loopback", "server", "ndif"))
    for place in PLACES:
        assert any(not absent("llama", place, method) for method in CALLS)


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.model}-{line.method}-{line.place}")
def test_no_place_differs(line):
    assert line.difference >= 0
    assert not line.differs
    assert line.size > 0.01, "scores so small would be equal anyway"
    elsewhere = line.place in ("loopback", "server", "ndif")
    assert (0 < line.requests <= 4) if elsewhere else line.requests == 0 or line.place == "petals"
    assert (line.sent > 0) == (line.received > 0) == (line.requests > 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("parity"))


@pytest.mark.parametrize("place", ["here", "nf4", "loopback"])
def test_measuring_again_gives_the_same(folders, place):
    lines = measure("gpt2", folders["gpt2"], place, list(CALLS))
    assert [line.method for line in lines] == [method for method in CALLS if not absent("gpt2", place, method)]
    assert not any(line.differs for line in lines)


def test_a_place_that_differs_fails_the_run(folders, monkeypatch, capsys):
    from benchmarks import parity

    exact = parity.untraced
    monkeypatch.setattr(parity, "untraced", lambda model, method: exact(model, method) + 1e-3)
    arguments = ["--models", str(folders["gpt2"].parent), "--places", "here", "--methods", "saliency"]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "gpt2 saliency here: differs" in printed.err
    assert "| gpt2  | `saliency`" in printed.out


def test_rounding_is_what_large_numbers_may_differ_by():
    def line(difference, size):
        return Line("gpt2", "saliency", "here", difference, size, 0, 0, 0, 1.0)

    assert not line(TOLERANCE, 0.1).differs
    assert line(1.1 * TOLERANCE, 0.1).differs
    assert not line(9 * TOLERANCE, 10.0).differs
    assert line(11 * TOLERANCE, 10.0).differs
    assert line(float("nan"), 1.0).differs


def test_running_some_places_keeps_the_others(tmp_path):
    old = [Line("gpt2", "saliency", place, 0.0, 1.0, 0, 0, 0, 1.0) for place in ("here", "server")]
    new = Line("gpt2", "saliency", "here", 1e-7, 2.0, 0, 0, 0, 3.0)
    path = tmp_path / "parity.json"
    path.write_text(json.dumps(merged(path, old)), encoding="utf-8")
    rows = merged(path, [new])["lines"]
    assert rows == [asdict(new), asdict(old[1])]
    assert table([Line(**row) for row in rows]).count("\n") == 3


def test_places_that_cannot_be_reached_are_said(monkeypatch, capsys, folders):
    monkeypatch.delenv("WHENCE_NDIF_HOST", raising=False)
    assert main(["--models", str(folders["gpt2"].parent), "--places", "ndif"]) == 0
    assert "ndif: not run, WHENCE_NDIF_HOST is not set; scripts/ndif_stack.sh starts one" in capsys.readouterr().err
