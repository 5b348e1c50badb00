"""Pipelines as text, objects and plain lists: three forms of one thing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.core.errors import InputError, UnknownNameError, WhenceError
from whence.scores import REDUCERS, Op, Pipeline
from whence.scores.aggregation.notation import parse
from whence.scores.aggregation.pipeline import described

AXES = ("step", "token", "source", "prefix", "layer", "head", "unit")
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8) | st.sampled_from(
    ["3", "-1.5", "true", "1..2", "a,b", "x|y", 'say "a"', "it's", "a+b", "k=v", " a ", "''", '"', "mean"]
)
INDEX = st.integers(-9, 9) | TEXT | st.lists(st.integers(-9, 9) | TEXT, min_size=1, max_size=3)


@st.composite
def operators(draw: st.DrawFn) -> Op:
    """Any built-in operator with any arguments that plain text can hold."""
    axis = draw(st.sampled_from(AXES))
    bound = st.none() | st.integers(-9, 9)
    on = st.lists(st.sampled_from(["step", "source", "prefix"]), min_size=1, unique=True) | st.just("source")
    how = st.none() | st.sampled_from(sorted(REDUCERS))
    spans = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3)
    return draw(
        st.one_of(
            st.builds(lambda how: Op("reduce", axis, how), st.sampled_from(sorted(REDUCERS))),
            st.builds(lambda order: Op("reduce", axis, "lp", order), st.floats(0.5, 9) | st.integers(1, 5)),
            st.builds(lambda index: Op("select", axis, index), INDEX),
            st.builds(lambda a, b: Op("slice", axis, a, b), bound, bound),
            st.builds(lambda a, b: Op("merge", axis, a, b), spans, how),
            st.builds(lambda a, b: Op("words", on=a, how=b), on, how),
            st.builds(
                lambda a, m, b: Op("split", a, m, b), TEXT, st.sampled_from(["single", "start", "end"]), on
            ),
            st.builds(lambda a: Op("weight", a), TEXT),
            st.builds(lambda a: Op("topk", a), st.integers(1, 9)),
            st.sampled_from([Op("rescale"), Op("undo"), Op("normalize", "l2"), Op("normalize", over="source")]),
        )
    )  # fmt: skip


@given(st.lists(operators(), max_size=4))
def test_text_and_list_give_back_the_pipeline(ops: list[Op]) -> None:
    chain = Pipeline(*ops)
    assert Pipeline(str(chain)) == chain
    assert Pipeline(*json.loads(json.dumps(chain.to_list()))) == chain
    assert hash(Pipeline(str(chain))) == hash(chain)
    assert [described(record) for record in chain.to_list()] == [str(op) for op in ops]


@given(st.text(st.sampled_from("layer:head=mean3,|+'\" .\\words"), max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        chain = Pipeline(text)
    except WhenceError:
        return
    assert Pipeline(str(chain)) == chain


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        ("", []),
        ("head:mean,layer:3,words", [Op("reduce", "head", "mean"), Op("select", "layer", 3), Op("words")]),
        ("layer=7,head=3|words|normalize",
         [Op("select", "layer", 7), Op("select", "head", 3), Op("words"), Op("normalize")]),
        (" head : mean | words ", [Op("reduce", "head", "mean"), Op("words")]),
        ("source:0:5", [Op("slice", "source", 0, 5)]),
        ("source:-3:", [Op("slice", "source", -3)]),
        ("step::2", [Op("slice", "step", None, 2)]),
        ("layer:0+2+-1", [Op("select", "layer", [0, 2, -1])]),
        ('words:"source"+', [Op("words", ["source"])]),
        ("layer:2+", [Op("select", "layer", [2])]),
        ('layer:"blocks.3.resid_post"', [Op("select", "layer", "blocks.3.resid_post")]),
        ("unit:lp:ord=3", [Op("reduce", "unit", "lp", 3)]),
        ("unit:lp:3", [Op("reduce", "unit", "lp", 3)]),
        ("unit:vnorm", [Op("reduce", "unit", "vnorm")]),
        (r"split:\.", [Op("split", r"\.")]),
        (r"split:'[,|] +':end", [Op("split", "[,|] +", "end")]),
        ("split:'it''s'", [Op("split", "it's")]),
        ("words:source+prefix", [Op("words", ["source", "prefix"])]),
        ("words:how=max", [Op("words", how="max")]),
        ("merge:source:0..2+3..5:sum", [Op("merge", "source", [(0, 2), (3, 5)], "sum")]),
        ("normalize:l2:source", [Op("normalize", "l2", "source")]),
        ("select:layer:name", [Op("select", "layer", "name")]),
        ("topk=5", [Op("topk", 5)]),
    ],
)  # fmt: skip
def test_texts_mean_what_is_documented(text: str, ops: list[Op]) -> None:
    assert Pipeline(text) == Pipeline(*ops)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("words,,abs", InputError, "'' is no operator"),
        ("3:layer", InputError, "no operator"),
        ("layer", InputError, "layer:mean or layer:0"),
        ("layer:", InputError, "layer:mean or layer:0"),
        ("layer:meen", UnknownNameError, "Did you mean 'mean' or 'min'.*quotes: layer:\"meen\""),
        ("split:'a", InputError, "without its end"),
        ("split:a'b'", InputError, "quotes go around"),
        ("split:a+", InputError, "stands in quotes"),
        ("split:+a", InputError, "stands in quotes"),
        ("words:how=max:source", InputError, "come last"),
    ],
)
def test_texts_that_mean_nothing(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Pipeline(text)


def test_parse_tells_values_apart() -> None:
    call = parse("x:1:1.5:-.5e3:true:text:'1':a+2:1..2::last=no")[0]
    assert call.values == (1, 1.5, -500.0, True, "text", "1", ("a", 2), (1, 2), None)
    assert dict(call.named) == {"last": "no"}


def test_usual_arguments_do_not_make_a_difference() -> None:
    assert Op("normalize", "l1") == Op("normalize") == Op("normalize", over="token")
    assert Op("select", "layer", np.array([1, 2])) == Op("select", "layer", range(1, 3))
    assert str(Pipeline(Op("words"), Pipeline("abs"), {"op": "topk", "args": {"k": 2}})) == "words,abs,topk:2"


@pytest.mark.parametrize("part", [3, None, {"args": {}}, ["words"], {"op": "words", "args": 3}])
def test_other_things_are_no_operators(part: Any) -> None:
    with pytest.raises(InputError, match="operators are texts"):
        Pipeline(part)


def test_arguments_are_plain() -> None:
    with pytest.raises(InputError, match="arguments are numbers"):
        Op("select", "layer", {1, 2})


def test_operators_that_are_not_registered_can_be_described() -> None:
    assert described({"op": "gone", "args": {"factor": 2, "text": "a,b"}}) == 'gone:factor=2:text="a,b"'
    assert described({"op": "difference", "args": {}, "minus": {}}) == "difference"
