"""The laws of aggregation, against slow references written here and against each other."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import make, tokens_of
from hypothesis import given
from hypothesis import strategies as st

import whence
from whence.core.errors import InputError, NonFiniteScore, UnknownNameError
from whence.core.tokens import Token
from whence.scores import Attribution, Attributions, Axis, Op, Pipeline, Scores, aggregate, aggregator

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


# What is recorded, and what stays.


def test_nothing_of_the_original_changes_and_everything_is_recorded(tmp_path: Path) -> None:
    item = make(extra={"layer": 2, "head": 3})
    before = item.scores.values.copy()
    got = item.aggregate("head:mean,layer:1", Op("words", on="source"))
    np.testing.assert_array_equal(item.scores.values, before)
    assert "ops" not in item.info
    assert [dict(op["args"]) for op in got.info["ops"]] == [
        {"axis": "head", "how": "mean"},
        {"axis": "layer", "index": 1},
        {"on": "source"},
    ]
    got.save(tmp_path / "out.json")
    assert whence.load_attribution(tmp_path / "out.json").equals(got)
    assert got.checks == item.checks
    assert got.scores.names == ("step", "token")


def test_last_word_is_whole() -> None:
    item = make(("The", " um", "brella"), (" is", " wet", "ter"))
    got = item.aggregate("words")
    assert [token.text for token in got.tokens] == ["The", " umbrella", " is", " wet"]
    assert [step.text for step in got.steps] == [" is", " wetter"]
    assert got.tokens[1].ids == (1, 2)
    assert (got.tokens[1].start, got.tokens[1].stop) == (3, 12)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (("one",), ["one"]),
        (("<s>", "</s>"), ["<s>", "</s>"]),
        (("日", "本"), ["日", "本"]),
        ((" don", "'", "t", " go"), [" don't", " go"]),
    ],
)
def test_words_of_odd_texts(source: tuple[str, ...], words: list[str]) -> None:
    assert [t.text for t in make(source, ("x",)).aggregate("words").tokens] == words


def test_words_of_nothing() -> None:
    empty = make(("a", "b"), ())
    got = empty.aggregate("words:step")
    assert got.scores.shape == (0, 2)


def test_tokens_that_are_no_neighbours_are_no_word() -> None:
    item = make(("un", "believ", "able"), ("x",))
    assert [t.text for t in item.aggregate("token:0+2").aggregate("words").tokens] == ["un", "able"]
    assert [t.text for t in item.aggregate("token:1+2").aggregate("words").tokens] == ["believable"]


@pytest.mark.parametrize(
    ("mode", "groups"),
    [
        ("single", ["the cat", ",", " the dog", ",", " end"]),
        ("start", ["the cat", ", the dog", ", end"]),
        ("end", ["the cat,", " the dog,", " end"]),
    ],
)
def test_split_modes(mode: str, groups: list[str]) -> None:
    item = make(("the", " cat", ",", " the", " dog", ",", " end"), ("x",))
    assert [t.text for t in item.aggregate(Op("split", ",", mode)).tokens] == groups
    assert len(item.aggregate(Op("split", "nowhere")).tokens) == 1
    assert len(item.aggregate(Op("split", "x*", on="source")).tokens) == 1


def test_a_token_across_a_boundary_belongs_where_it_begins() -> None:
    item = make(("ab.", " c", "d. e", "f"), ("x",))
    assert [t.text for t in item.aggregate(Op("split", r"\.", "end")).tokens] == ["ab.", " cd. e", "f"]


def test_usual_merges_follow_the_method() -> None:
    def row(**info: Any) -> tuple[float, float]:
        item = replace(make(("un", "able"), ("x", "y")), info=info)
        item = replace(item, scores=replace(item.scores, values=[[3, 4, np.nan], [6, 8, 1]]))
        one = item.aggregate("words:source").scores.values[0, 0]
        return float(one), float(item.aggregate("merge:step:0..2").scores.values[0, 0])

    assert row(additive=True, join="sum", signed=True) == (7, 9)
    assert row(additive=False, join="l2", signed=False) == (5, 4.5)
    assert row(additive=False, join="linf", signed=False) == (4, 4.5)
    assert row(additive=False, join="sum", signed=False) == (7, 4.5)
    assert row(additive=False, signed=False) == (5, 4.5)
    assert row(additive=False, signed=True) == (7, 4.5)
    assert row() == (7, 4.5)


def test_whole_axes_merge_only_by_name() -> None:
    item = make(extra={"layer": 3})
    with pytest.raises(InputError, match="say how entries of layer merge"):
        item.aggregate("merge:layer:0..2")
    got = item.aggregate("merge:layer:0..2:mean")
    assert got.scores.axis("layer").labels == ("0+1", "2")
    np.testing.assert_allclose(got.scores.values[..., 0], item.scores.values[..., :2].mean(-1), rtol=1e-5, atol=1e-7)


def test_a_single_layer_drops_its_axis_and_a_single_token_does_not() -> None:
    item = make(extra={"layer": 3, "head": 2})
    np.testing.assert_array_equal(item.aggregate("layer:1,head:-1").scores.values, item.scores.values[:, :, 1, 1])
    assert item.aggregate("layer:1+").scores.shape[2] == 1
    assert len(item.aggregate("source:0").source.axis("token")) == 1
    assert len(item.aggregate("step:-1").steps) == 1
    assert [t.text for t in item.aggregate('source:" The"+" bank"').tokens if t.side == "source"] == [" The", " bank"]


# Further scores.


def with_extras() -> Attribution:
    item = make(("a", " b", " c"), (" d", " e"), extra={"layer": 2})
    tokens = Axis("token", ("a", " b", " c"))
    inside = Scores(np.ones((3, 3, 2)), (Axis("step", tokens.labels), tokens, item.scores.axis("layer")))
    bias = Scores(np.arange(4.0).reshape(2, 2), (item.scores.axis("step"), item.scores.axis("layer")))
    return replace(item, extras={"standard_error": item.scores.absolute(), "encoder_self": inside, "bias": bias})


def test_standard_errors_are_selected_and_scaled_but_never_merged() -> None:
    item = with_extras()
    assert item.aggregate("layer:1,source:0:2").extras["standard_error"].shape == (2, 3)
    halved = item.aggregate("rescale")
    peak = np.nanmax(np.abs(item.scores.values))
    expected = item.extras["standard_error"].values / peak
    np.testing.assert_allclose(halved.extras["standard_error"].values, expected, rtol=1e-5)
    merged = item.aggregate("words")
    assert "standard_error" not in merged.extras
    assert merged.info["ops"][0]["dropped"] == ("standard_error",)
    assert item.aggregate("layer:mean").info["ops"][0]["dropped"] == ("standard_error",)
    assert "standard_error" not in item.aggregate("positive").extras


def test_other_further_scores_follow_their_axes() -> None:
    got = with_extras().aggregate("layer:sum,step:sum")
    np.testing.assert_allclose(got.extras["bias"].values, [6.0])
    assert got.extras["encoder_self"].shape == (3, 3)
    assert with_extras().aggregate("source:0:1").extras["encoder_self"].shape == (3, 3, 2)
    # In another unit than the scores they would mislead.
    normalised = with_extras().aggregate("normalize")
    assert list(normalised.extras) == ["standard_error", "encoder_self"]
    assert normalised.info["ops"][0]["dropped"] == ("bias",)


def test_a_copied_text_is_not_taken_for_the_steps() -> None:
    item = make(("a", " b"), ("a", " b"))
    axes = tuple(Axis(name, ("a", " b")) for name in ("step", "token"))
    item = replace(item, extras={"encoder_self": Scores(np.eye(2), axes)})
    assert item.aggregate("step:0").extras["encoder_self"].shape == (2, 2)


# Differences.


def test_difference_names_what_differs_and_records_the_second() -> None:
    one, other = make(("In", " it"), ("x",), seed=1), make(("On", " it"), ("y",), seed=2, method="occlusion")
    got = one - other
    assert [token.text for token in got.tokens] == ["In -> On", " it"]
    assert [step.text for step in got.steps] == ["x -> y"]
    assert got.info["ops"][-1]["minus"]["method"] == "occlusion"
    assert got.step_scores["probability"] == pytest.approx(
        one.step_scores["probability"] - other.step_scores["probability"]
    )
    assert got.aggregate("words").scores.names == ("step", "token")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make(("a",), ("x", "y")), "different axes"),
        (make(("a", "b"), ("x", "y"), extra={"layer": 2}), "different axes"),
        (make(("a", "b", "c"), ("x",)), "different axes"),
        (make(("a", "b", "c"), ("x", "y")), "different axes"),
    ],
)
def test_differences_that_make_no_sense(other: Attribution, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _ = make(("a", "b"), ("x", "y")) - other


def test_differences_need_the_same_cells_and_sides() -> None:
    item = make(("a", "b"), ("x", "y"))
    hidden = replace(item, scores=replace(item.scores, values=np.full((2, 3), np.nan)))
    with pytest.raises(InputError, match="defined in only one"):
        _ = item - hidden
    moved = replace(item, tokens=tuple(replace(t, side="source") for t in item.tokens))
    with pytest.raises(InputError, match="numbers of source tokens"):
        _ = item - moved
    with pytest.raises(TypeError):
        _ = item - 1  # type: ignore[operator]


# Several results.


def test_lists_are_aggregated_one_by_one_and_added() -> None:
    one, other = make(("un", "able"), ("x",)), make(("a", " b"), ("y",))
    both = Attributions((one,)) + Attributions((other,))
    assert [len(item.tokens) for item in both.aggregate("words")] == [1, 2]
    assert len(sum([both, both])) == 4
    with pytest.raises(InputError, match="method is 'integrated_gradients' in one and 'saliency' in another"):
        _ = both + Attributions((make(("a",), ("b",), method="saliency"),))


# Errors.


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("layer:mean", InputError, "no axis 'layer'; they have step, token"),
        ("layer:0", InputError, "no axis 'layer'"),
        ("source:99", InputError, "no token 99"),
        ("source:1+1", InputError, "more than once"),
        ('source:"nowhere"', UnknownNameError, "nowhere"),
        ("topk:0", InputError, "at least one"),
        ("topk:0.5", InputError, "at least one"),
        ("weight:surprise", UnknownNameError, "probability"),
        ("normalize:l3", UnknownNameError, "Did you mean"),
        ("normalize:l1:left", UnknownNameError, "source"),
        ("split:'('", InputError, "not a regular expression"),
        ("split:a+b", InputError, "one regular expression"),
        ("split:a:middle", UnknownNameError, "single"),
        ("words:target", UnknownNameError, "source"),
        ("words:step:meen", UnknownNameError, "Did you mean 'mean'"),
        ("undo", InputError, "last operator is none"),
        ("abs,undo", InputError, "last operator is abs"),
        ("merge:source:3..2", InputError, "does not fit"),
        ("merge:source:5", InputError, "pairs"),
        ("merge:source:a+b", InputError, "pairs"),
        ("words:5", UnknownNameError, "source"),
        ("words:source:5", InputError, "name or a function"),
        ("select:layer", InputError, "it takes axis, index"),
        ("step:lp:ord=-1", InputError, "positive"),
        ("step:mean:ord=2", InputError, "no option 'ord'"),
        ("slice:source:a", InputError, "whole numbers"),
        ("wrods", UnknownNameError, "Did you mean 'words'"),
        ("topk", InputError, "it takes k"),
        ("topk:1:2", InputError, "it takes k"),
        ("topk:j=1", InputError, "it takes k"),
    ],
)
def test_errors_say_what_there_is(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make().aggregate(text)


def test_units_are_not_normalised_one_by_one() -> None:
    with pytest.raises(InputError, match="unit:sum"):
        make(extra={"unit": 4}).aggregate("normalize")


def test_sums_that_cancel_are_refused_and_zeros_are_noted() -> None:
    item = make(("a", "b"), ("x", "y"))
    cancel = replace(item, scores=replace(item.scores, values=[[1, -1, np.nan], [1, 1, 0]]))
    with pytest.raises(InputError, match="step 0 cancel"):
        cancel.aggregate("normalize:sum")
    zero = replace(item, scores=replace(item.scores, values=[[0, 0, np.nan], [1, 3, 0]]))
    got = zero.aggregate("normalize")
    np.testing.assert_array_equal(got.scores.values, [[0, 0, np.nan], [0.25, 0.75, 0]])
    assert got.info["factors"][0]["zero"] == ((0,),)


def test_step_scores_without_a_number_take_the_scores_with_them() -> None:
    item = make(("a", "b"), ("x", "y"))
    got = replace(item, step_scores={"pcxmi": [np.nan, 2.0]}).aggregate("weight:pcxmi")
    assert np.isnan(got.scores.values[0]).all()
    with pytest.raises(NonFiniteScore, match="step 1 is infinite"):
        replace(item, step_scores={"pcxmi": [0.0, np.inf]}).aggregate("weight:pcxmi")


def test_an_empty_side_cannot_be_reduced() -> None:
    with pytest.raises(InputError, match="no prefix"):
        make(("a",), ("x",)).aggregate("prefix:sum")


# Operators of one's own.


@pytest.fixture
def own() -> Any:
    before = dict(whence.AGGREGATORS._added)
    yield
    whence.AGGREGATORS._added.clear()
    whence.AGGREGATORS._added.update(before)


def test_own_operators_work_by_name_and_are_recorded(own: None) -> None:
    @aggregator("times")
    def times(attribution: Attribution, factor: float = 2.0, *, note: str = "") -> Attribution:
        return replace(attribution, scores=attribution.scores.scale(factor))

    item = make()
    got = item.aggregate("times:3:note=x,times")
    np.testing.assert_allclose(got.scores.values, item.scores.values * 6, rtol=1e-5)
    assert dict(got.info["ops"][0]["args"]) == {"factor": 3, "note": "x"}
    assert times(item).scores.equals(item.scores.scale(2.0))
    assert str(Pipeline("times:3:note=x")) == "times:3:note=x"
    with pytest.raises(InputError, match="exists already"):
        aggregator("times")(times)


@pytest.mark.parametrize("name", ["layer", "two words", "", "3"])
def test_names_of_operators_are_words(name: str) -> None:
    with pytest.raises(InputError, match="name is a word"):
        aggregator(name)


def test_own_operators_have_named_arguments_and_return_attributions(own: None) -> None:
    with pytest.raises(InputError, match="arguments that have names"):
        aggregator("free")(lambda attribution, *args: attribution)
    aggregator("wrong")(lambda attribution: attribution.scores)
    with pytest.raises(InputError, match="returned a Scores"):
        make().aggregate("wrong")


def test_functions_reduce_but_cannot_be_written() -> None:
    item = make(extra={"head": 3})
    chain = Pipeline(Op("reduce", "head", np.median))
    np.testing.assert_allclose(chain(item).scores.values, np.median(item.scores.values, axis=-1), rtol=1e-5)
    assert chain(item).info["ops"][0]["args"]["how"] == "median"
    with pytest.raises(InputError, match="cannot be written"):
        str(chain)


def test_joined_tokens_of_different_segments() -> None:
    tokens = [replace(t, segment=name) for t, name in zip(tokens_of("ab", "source"), ("user", "system"), strict=True)]
    scores = Scores(np.ones((1, 2)), (Axis("step", ("x",)), Axis("token", ("a", "b"))))
    item = Attribution(scores, tuple(tokens), (Token(1, "x", 0, 1, "prefix"),))
    assert item.aggregate("token:sum").tokens[0].segment == "source"


def test_no_word_reaches_across_a_special_token() -> None:
    item = make(("un", "<sep>", "able"), ("x",))
    assert [t.text for t in item.aggregate("words").tokens] == ["un", "<sep>", "able"]
