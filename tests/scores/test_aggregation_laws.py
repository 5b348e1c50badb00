"""The laws of aggregation, against slow references written here and against each other."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import make
from hypothesis import given
from hypothesis import strategies as st

from whence.core.errors import InputError
from whence.scores import Attribution, Op, aggregate

ASSOCIATIVE = ("sum", "max", "min", "l1", "l2", "prod", "absmax")
PIECES = ("<s>", "un", "believ", "able", " story", ",", " a", "\n", " b", "c", "日", "本", " don", "'", "t", " ")
CLOSE = {"rtol": 2e-4, "atol": 1e-5}


@st.composite
def attributions(draw: st.DrawFn, extra: bool = True, additive: bool | None = None, most: int = 6) -> Attribution:
    """Random texts, axes, scores, undefined cells and step scores."""
    source = draw(st.lists(st.sampled_from(PIECES), min_size=1, max_size=most))
    output = draw(st.lists(st.sampled_from(PIECES[1:]), min_size=1, max_size=most))
    sizes = {name: draw(st.integers(1, 3)) for name in ("layer", "head") if extra and draw(st.booleans())}
    known = draw(st.booleans()) if additive is None else additive
    made = make(source, output, extra=sizes, magnitude=1.0, seed=draw(st.integers(0, 2**32 - 1)), additive=known)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cells = made.scores.shape[:2]
    hidden = random.random(cells) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    values = np.where(hidden.reshape(*cells, *(1,) * len(sizes)), np.nan, np.round(made.scores.values, 3))
    scores = {"probability": made.step_scores["probability"], "entropy": random.uniform(0, 3, cells[0])}
    return replace(
        made,
        scores=replace(made.scores, values=values),
        step_scores=scores,
        info={**made.info, "merges": {"probability": "prod", "entropy": "sum"}},
    )


def slow(values: np.ndarray, groups: list[tuple[list[int], list[int]]], how: Callable[[list[float]], float]) -> Any:
    """Every group of (step, token) cells, reduced by plain Python over those that are numbers."""
    found = []
    for steps, tokens in groups:
        known = [float(values[s, t]) for s in steps for t in tokens if not np.isnan(values[s, t])]
        found.append(how(known) if known else np.nan)
    return found


# Laws.


@given(attributions(), st.permutations(["step", "source", "prefix", "layer", "head"]), st.sampled_from(ASSOCIATIVE[:6]))
def test_order_of_independent_reductions_does_not_matter(item: Attribution, order: list[str], how: str) -> None:
    axes = [axis for axis in ("step", "source", "prefix", "layer", "head") if _has(item, axis)]
    one = aggregate(item, *(f"{axis}:{how}" for axis in axes))
    other = aggregate(item, *(f"{axis}:{how}" for axis in order if axis in axes))
    np.testing.assert_allclose(one.scores.values, other.scores.values, **CLOSE)
    assert one.tokens == other.tokens
    assert one.steps == other.steps
    for name, row in one.step_scores.items():
        np.testing.assert_allclose(row, other.step_scores[name], **CLOSE)


def _has(item: Attribution, axis: str) -> bool:
    if axis in ("source", "prefix"):
        return any(token.side == axis for token in item.tokens)
    return axis in item.scores.names


@given(attributions(), st.sampled_from(["mean", "sum", "max", "l2"]), st.data())
def test_selecting_then_reducing_is_reducing_the_selection(item: Attribution, how: str, data: st.DataObject) -> None:
    if not item.scores.names[2:]:
        return
    axis = data.draw(st.sampled_from(item.scores.names[2:]))
    size = len(item.scores.axis(axis))
    keep = data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True))
    got = aggregate(item, Op("select", axis, keep), Op("reduce", axis, how))
    place = item.scores.index(axis)
    part = np.take(item.scores.values.astype(float), keep, axis=place)
    numpy = {"mean": np.mean, "sum": np.sum, "max": np.max, "l2": np.linalg.norm}[how]
    np.testing.assert_allclose(got.scores.values, numpy(part, axis=place), **CLOSE)
    rest = [name for name in item.scores.names[2:] if name != axis]
    if rest:
        one = aggregate(item, Op("select", axis, keep[0]), Op("reduce", rest[0], how))
        other = aggregate(item, Op("reduce", rest[0], how), Op("select", axis, keep[0]))
        assert one.scores.equals(other.scores, atol=1e-5)


@given(attributions(additive=True))
def test_words_keep_the_sums_of_an_additive_method(item: Attribution) -> None:
    merged = aggregate(item, "words")
    axes = (0, 1)
    for side in ("source", "prefix"):
        before, after = (np.nansum(one._side(side).values, axis=axes, dtype=float) for one in (item, merged))
        np.testing.assert_allclose(before, after, **CLOSE)
    assert merged.text == item.text
    assert merged.generated == item.generated
    assert sum(len(t.ids) or 1 for t in merged.tokens) == len(item.tokens)


@given(attributions(), st.sampled_from(["sum", "mean", "max", "absmax", "l2"]))
def test_cells_are_defined_where_some_part_of_them_was(item: Attribution, how: str) -> None:
    merged = aggregate(item, Op("words", "source", how))
    at = 0
    for k, token in enumerate(merged.tokens):
        width = len(token.ids) or 1
        expected = item.scores.defined[:, at : at + width].any(axis=1)
        np.testing.assert_array_equal(merged.scores.defined[:, k], expected)
        at += width
    assert at == len(item.tokens)


@given(attributions(extra=False), st.data())
def test_merging_is_what_plain_python_gives(item: Attribution, data: st.DataObject) -> None:
    rule = {"sum": sum, "mean": lambda known: sum(known) / len(known), "max": max, "l2": np.linalg.norm}
    how = data.draw(st.sampled_from(sorted(rule)))
    size = len(item.tokens)
    cuts = sorted(data.draw(st.sets(st.integers(0, size), max_size=4)))
    spans = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if a < b]
    got = aggregate(item, Op("merge", "token", spans, how)) if spans else item
    covered = {k: (a, b) for a, b in spans for k in range(a, b)}
    groups, k = [], 0
    while k < size:
        a, b = covered.get(k, (k, k + 1))
        groups.append(list(range(a, b)))
        k = b
    for s in range(len(item.steps)):
        cells = [([s], group) for group in groups]
        expected = [
            item.scores.values[s, g[0]] if g[0] not in covered else e
            for (_, g), e in zip(cells, slow(item.scores.values, cells, rule[how]), strict=True)
        ]
        np.testing.assert_allclose(got.scores.values[s], expected, **CLOSE)


@given(attributions(extra=False, additive=False), st.integers(1, 4))
def test_merged_steps_average_the_defined_cells_and_merge_step_scores(item: Attribution, width: int) -> None:
    width = min(width, len(item.steps))
    got = aggregate(item, Op("merge", "step", [(0, width)]))
    cells = [(list(range(width)), [k]) for k in range(len(item.tokens))]
    np.testing.assert_allclose(got.scores.values[0], slow(item.scores.values, cells, np.mean), **CLOSE)
    np.testing.assert_array_equal(got.scores.values[1:], item.scores.values[width:])
    assert got.step_scores["probability"][0] == pytest.approx(np.prod(item.step_scores["probability"][:width]))
    assert got.step_scores["entropy"][0] == pytest.approx(np.sum(item.step_scores["entropy"][:width]))
    assert got.steps[0].text == "".join(step.text for step in item.steps[:width])


@given(attributions(), st.sampled_from(["l1", "l2", "max"]), st.sampled_from(["token", "source"]))
def test_normalised_steps_have_size_one_and_undo_gives_back_the_scores(item: Attribution, kind: str, over: str) -> None:
    got = aggregate(item, Op("normalize", kind, over))
    np.testing.assert_array_equal(got.scores.defined, item.scores.defined)
    part = got.scores.values if over == "token" else got.source.values
    size = {"l1": lambda x: np.abs(x).sum(), "l2": np.linalg.norm, "max": lambda x: np.abs(x).max()}[kind]
    for where in np.ndindex(part.shape[0], *part.shape[2:]):
        line = part[(where[0], slice(None), *where[1:])]
        line = line[~np.isnan(line)].astype(float)
        if line.any():
            assert size(line) == pytest.approx(1, rel=1e-4)
    back = got.aggregate("undo")
    np.testing.assert_allclose(back.scores.values, item.scores.values, rtol=1e-5, atol=1e-6)
    assert not back.info["factors"]
    assert [op["op"] for op in back.info["ops"]] == ["normalize", "undo"]


@given(attributions())
def test_rescaling_makes_the_largest_magnitude_one(item: Attribution) -> None:
    got = aggregate(item, "rescale")
    known = np.abs(got.scores.values[got.scores.defined])
    if known.size and known.any():
        assert known.max() == pytest.approx(1)
        place = np.nanargmax(np.abs(item.scores.values))
        assert np.nanargmax(np.abs(got.scores.values)) == place
    np.testing.assert_allclose(got.aggregate("undo").scores.values, item.scores.values, rtol=1e-5, atol=1e-6)


@given(attributions())
def test_signs_and_magnitudes_add_up(item: Attribution) -> None:
    positive, negative, size = (aggregate(item, op).scores.values for op in ("positive", "negative", "abs"))
    np.testing.assert_array_equal(positive + negative, item.scores.values)
    np.testing.assert_array_equal(positive - negative, size)


@given(attributions(), st.integers(1, 4))
def test_topk_keeps_the_largest_of_every_step(item: Attribution, k: int) -> None:
    got = aggregate(item, Op("topk", k))
    values = item.scores.values
    for where in np.ndindex(values.shape[0], *values.shape[2:]):
        line, mine = (one[(where[0], slice(None), *where[1:])] for one in (values, got.scores.values))
        known = sorted((-abs(v), t) for t, v in enumerate(line) if not np.isnan(v))
        kept = {t for _, t in known[:k]}
        expected = [v if np.isnan(v) or t in kept else 0 for t, v in enumerate(line)]
        np.testing.assert_array_equal(mine, expected)
        mask = got.extras["kept"].values[(where[0], slice(None), *where[1:])]
        assert {t for t, v in enumerate(mask) if v == 1} == kept


@given(attributions())
def test_weights_multiply_every_step(item: Attribution) -> None:
    got = aggregate(item, "weight:entropy")
    by = item.step_scores["entropy"].reshape(-1, *(1,) * (item.scores.values.ndim - 1))
    np.testing.assert_allclose(got.scores.values, item.scores.values * by, **CLOSE)


@given(attributions(), st.data())
def test_slices_are_those_of_python(item: Attribution, data: st.DataObject) -> None:
    axis = data.draw(st.sampled_from(["step", "source", "prefix", "token"]))
    bound = st.none() | st.integers(-7, 7)
    start, stop = data.draw(bound), data.draw(bound)
    entries = item.steps if axis == "step" else item.tokens
    inside = [k for k, one in enumerate(entries) if axis in ("step", "token") or one.side == axis]
    keep = inside[start:stop]
    if not keep:
        with pytest.raises(InputError, match="is empty"):
            aggregate(item, Op("slice", axis, start, stop))
        return
    got = aggregate(item, Op("slice", axis, start, stop))
    place = 0 if axis == "step" else 1
    all_kept = sorted([*keep, *(k for k in range(len(entries)) if k not in inside)])
    np.testing.assert_array_equal(got.scores.values, np.take(item.scores.values, all_kept, axis=place))
    assert (got.steps if place == 0 else got.tokens) == tuple(entries[k] for k in all_kept)
    if axis == "step":
        np.testing.assert_array_equal(got.step_scores["entropy"], item.step_scores["entropy"][all_kept])


@given(attributions(), st.integers(0, 99))
def test_difference_is_first_minus_second(item: Attribution, seed: int) -> None:
    moved = np.random.default_rng(seed).normal(size=item.scores.shape)
    other = replace(item, scores=replace(item.scores, values=item.scores.values - moved))
    got = item - other
    np.testing.assert_allclose(got.scores.values, np.where(item.scores.defined, moved, np.nan), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((other - item).scores.values, -got.scores.values)
    assert got.tokens == item.tokens
    assert not np.any(got.step_scores["entropy"])


@given(attributions())
def test_every_result_survives_a_file_and_a_copy(item: Attribution) -> None:
    got = aggregate(item, "words,normalize,topk:2")
    assert pickle.loads(pickle.dumps(got)).equals(got)
