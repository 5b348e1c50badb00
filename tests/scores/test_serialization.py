"""Saving and loading: the identity on everything, and a clear refusal of anything else."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as pack

from scores.fakes import make
from whence.core.errors import FileFormatError, InputError
from whence.core.tokens import Token
from whence.scores import Attribution, Attributions, Axis, Check, Scores, load_attribution
from whence.scores.serialization import _digest, _Token

# Every character Python knows, lone surrogates included.
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=6)
NUMBERS = st.floats(width=32, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def attributions(draw: st.DrawFn) -> Attribution:
    """Any attribution at all, down to none of anything."""
    counts = draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.integers(1, 2))
    names = ("step", "token", "layer")[: draw(st.integers(2, 3))]
    axes = tuple(Axis(n, tuple(draw(TEXTS) for _ in range(c))) for n, c in zip(names, counts, strict=False))
    size = int(np.prod([len(axis) for axis in axes[:2]]))
    cells = np.array(draw(st.lists(NUMBERS, min_size=size, max_size=size)), dtype=np.float32)
    values = np.stack([cells] * counts[2], axis=-1) if len(axes) == 3 else cells
    sides = sorted(draw(st.sampled_from(["source", "prefix"])) for _ in range(counts[1]))[::-1]
    place = st.none() | st.integers(0, 9)

    def token(side: Any) -> Token:
        marks = draw(st.booleans()), draw(st.booleans()), tuple(draw(st.lists(st.integers(0), max_size=2)))
        return Token(draw(st.integers(0)), draw(TEXTS), draw(place), draw(place), side, draw(TEXTS), *marks)

    return Attribution(
        Scores(values.reshape([len(axis) for axis in axes]), axes),
        tuple(token(side) for side in sides),
        tuple(token("prefix") for _ in range(counts[0])),
        {
            name: np.array(draw(st.lists(st.floats(), min_size=counts[0], max_size=counts[0])))
            for name in draw(st.sets(TEXTS, max_size=2))
        },
        tuple(
            Check(draw(TEXTS), draw(st.floats()), draw(st.none() | st.floats()), draw(st.none() | st.booleans()))
            for _ in range(draw(st.integers(0, 2)))
        ),
        draw(st.dictionaries(TEXTS, PLAIN, max_size=3)),
    )


@quick
@given(item=attributions(), ending=st.sampled_from(["", ".gz"]))
def test_save_then_load_is_the_identity(item: Attribution, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.json{ending}"
    item.save(path)
    found = Attribution.load(str(path))
    assert found.equals(item)
    assert found.scores.values.tobytes() == item.scores.values.tobytes()


@quick
@given(items=st.lists(attributions(), max_size=3))
def test_lists_too(items: list[Attribution], tmp_path: Path) -> None:
    Attributions(tuple(items)).save(tmp_path / "out.json")
    found = Attributions.load(tmp_path / "out.json")
    assert len(found) == len(items)
    assert all(a.equals(b) for a, b in zip(found, items, strict=True))


@settings(quick, max_examples=200)
@given(data=st.data(), ending=st.sampled_from(["", ".gz"]))
def test_damaged_files_are_refused_or_mean_the_same(data: st.DataObject, ending: str, tmp_path: Path) -> None:
    item = make(("a", " b"), ("c", "d"))
    path = tmp_path / f"out.json{ending}"
    item.save(path)
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    with suppress(FileFormatError):
        assert Attribution.load(path).equals(item)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "out.json"
    make(("a", " b"), ("c", "d")).save(path)
    return path


def test_the_file_is_plain_json_that_may_be_laid_out_anew(saved: Path) -> None:
    found = json.loads(saved.read_text("utf-8"))
    assert (found["format"], found["format_version"]) == ("whence/attribution", 1)
    assert found["content"]["attributions"][0]["tokens"][1]["text"] == " b"
    saved.write_text(json.dumps(found, indent=2, sort_keys=True))
    assert load_attribution(saved).equals(make(("a", " b"), ("c", "d")))


def test_a_newer_format_is_refused_before_anything_else(saved: Path) -> None:
    saved.write_text(json.dumps({"format": "whence/attribution", "format_version": 2, "new": True}))
    message = r"out\.json: written by format version 2, this whence reads up to 1; upgrade whence"
    with pytest.raises(FileFormatError, match=message):
        Attribution.load(saved)


def test_files_of_another_kind(saved: Path) -> None:
    for text, message in {
        "": "not the JSON of an attribution",
        "[]": "not a file of format 'whence/attribution'",
        '{"format": "inseq"}': "not a file of format",
        '{"format": "whence/attribution", "format_version": "1"}': "format version is '1'",
        '{"format": "whence/attribution", "format_version": 1}': "sha256: Field required",
        '{"format": NaN}': "NaN is not JSON",
        "[" * 100_000: "not the JSON of an attribution",
        "\x1f\x8b": "not the JSON",
    }.items():
        saved.write_text(text)
        with pytest.raises(FileFormatError, match=message):
            Attribution.load(saved)
    saved.write_bytes(gzip.compress(b"{}")[:-9])
    with pytest.raises(FileFormatError, match="compressed data is damaged"):
        Attribution.load(saved)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with its content changed and its checksum made to match."""
    found = json.loads(path.read_text())
    change(found["content"])
    path.write_text(json.dumps({**found, "sha256": _digest(found["content"])}))
    return path


def set_arrays(arrays: dict[str, np.ndarray]) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(arrays=base64.b64encode(pack(arrays)).decode())


GOOD = {"0.scores": np.zeros((2, 3), np.float32), "0.step_scores": np.zeros((1, 2), np.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_arrays({"0.scores": GOOD["0.scores"]}), r"arrays missing or unknown: 0\.step_scores"),
        (set_arrays({**GOOD, "x": np.zeros(1, np.float32)}), "arrays missing or unknown: x"),
        (set_arrays({**GOOD, "0.scores": np.zeros((2, 3))}), r"array '0\.scores' is float64, not float32"),
        (set_arrays({**GOOD, "0.scores": GOOD["0.scores"][:1]}), r"scores have shape \(1, 3\), but axes say"),
        (
            set_arrays({**GOOD, "0.step_scores": GOOD["0.step_scores"][:, :1]}),
            r"step scores have shape \(1, 1\)",
        ),
        (set_arrays({**GOOD, "0.scores": np.full((2, 3), np.inf, np.float32)}), "is infinite"),
        (lambda c: c.update(arrays="AAAA"), "the arrays cannot be read"),
        (lambda c: c.update(arrays="?"), "not the JSON of an attribution"),
        (lambda c: c["attributions"][0].update(extra=1), r"attributions\.0\.extra: Extra inputs"),
        (lambda c: c["attributions"][0].pop("steps"), r"attributions\.0\.steps: Field required"),
        (lambda c: c["attributions"][0]["steps"].pop(), "but the header names 1 for 1 steps"),
        (lambda c: c["attributions"][0]["tokens"].pop(), "2 tokens, but the token axis has 3"),
        (
            lambda c: c["attributions"][0]["tokens"][0].update(id="7"),
            r"tokens\.0\.id: Input should be a valid int",
        ),
        (lambda c: c["attributions"][0]["tokens"][0].update(side="left"), r"side: Input should be 'source'"),
        (lambda c: c["attributions"][0].update(step_scores=["p", "p"]), "two step scores have the same name"),
        (lambda c: c["attributions"][0]["axes"].reverse(), "but axes say"),
        (lambda c: c["attributions"][0]["axes"][0].update(name="os"), "unknown axis 'os'"),
    ],
)
def test_content_that_does_not_fit(saved: Path, change: Callable[..., None], message: str) -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        Attribution.load(rewritten(saved, change))
    assert str(caught.value).startswith(f"cannot load {saved}: ")


def test_the_rewriting_used_above_is_faithful(saved: Path) -> None:
    assert Attribution.load(rewritten(saved, lambda content: None)).equals(make(("a", " b"), ("c", "d")))


def test_changed_content_is_noticed(saved: Path) -> None:
    saved.write_text(saved.read_text().replace('" b"', '" c"'))
    with pytest.raises(FileFormatError, match="does not match its checksum"):
        Attribution.load(saved)


def test_places_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    item = make(("a",), ("b",))
    with pytest.raises(InputError, match="it is a folder; name a file in it"):
        item.save(tmp_path)
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist"):
        item.save(tmp_path / "nowhere" / "out.json")
    with pytest.raises(InputError, match="no such file"):
        Attribution.load(tmp_path / "out.json")
    with pytest.raises(InputError, match="it is a folder"):
        Attribution.load(tmp_path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(saved: Path) -> None:
    before = saved.read_bytes()
    item = make(("a",), ("b",))
    broken = replace(item, tokens=(replace(item.tokens[0], text=b"bytes"),))
    with pytest.raises(InputError, match="cannot save a bytes"):
        broken.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_replaces_and_is_reproducible(saved: Path, tmp_path: Path) -> None:
    item = make()
    item.save(saved)
    assert Attribution.load(saved).equals(item)
    item.save(tmp_path / "a.json.gz")
    item.save(tmp_path / "b.json.gz")
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_token_ids_may_come_from_arrays(tmp_path: Path) -> None:
    item = make(("a",), ("b",))
    item = replace(item, tokens=(replace(item.tokens[0], id=np.int64(7)),))
    item.save(tmp_path / "out.json")
    assert Attribution.load(tmp_path / "out.json").tokens[0].id == 7


def test_one_is_not_many(tmp_path: Path) -> None:
    Attributions((make(), make())).save(tmp_path / "out.json")
    with pytest.raises(FileFormatError, match=r"it holds 2 attributions; use Attributions\.load"):
        Attribution.load(tmp_path / "out.json")


def test_the_file_knows_every_field_of_a_token() -> None:
    assert list(_Token.model_fields) == [field.name for field in fields(Token)]
