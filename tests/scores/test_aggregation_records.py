"""What aggregation records, leaves out, refuses, and lets others add."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import make, tokens_of

import whence
from whence.core.errors import InputError, NonFiniteScore, UnknownNameError
from whence.core.tokens import Token
from whence.scores import Attribution, Attributions, Axis, Op, Pipeline, Scores, aggregator

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
