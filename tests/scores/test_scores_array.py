"""The algebra of score arrays, against plain numpy and against itself."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.core.axes import SCORE_AXES
from whence.core.errors import InputError, NonFiniteScore, UnknownNameError
from whence.scores import REDUCERS, Axis, Scores

LINEAR = ("sum", "mean")
SIGNLESS = ("mean", "max", "min", "sum", "absmax", "l1", "l2", "lp", "prod")


def scores_of(values: np.ndarray, *names: str) -> Scores:
    """Scores with the labels ``step0``, ``step1``, ..."""
    axes = tuple(Axis(n, tuple(f"{n}{k}" for k in range(s))) for n, s in zip(names, values.shape, strict=True))
    return Scores(values, axes)


@st.composite
def arrays(draw: st.DrawFn, need: tuple[str, ...] = (), least: int = 1) -> Scores:
    """Scores with random axes, values, and undefined (step, token) cells."""
    names = [n for n in SCORE_AXES if n in need or draw(st.booleans())]
    shape = tuple(draw(st.integers(least, 4)) for _ in names)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = np.round(random.normal(size=shape) * draw(st.sampled_from([1e-3, 1.0, 50.0])), 4)
    cell = tuple(s if n in ("step", "token") else 1 for n, s in zip(names, shape, strict=True))
    hidden = random.random(cell) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return scores_of(np.where(hidden, np.nan, values).reshape(shape), *names)


@given(arrays(need=("token",)), st.sampled_from(sorted(REDUCERS)))
def test_reducing_tokens_looks_at_defined_scores_only(scores: Scores, how: str) -> None:
    i = scores.index("token")
    got = scores.reduce("token", how).values
    lines = np.moveaxis(scores.values, i, -1).astype(np.float64)
    for where in np.ndindex(got.shape):
        known = lines[where][~np.isnan(lines[where])]
        if not known.size:
            assert np.isnan(got[where])
            continue
        expected = {
            "mean": known.mean(),
            "max": known.max(),
            "min": known.min(),
            "sum": known.sum(),
            "prod": known.prod(),
            "absmax": max(known, key=abs),
            "l1": np.abs(known).sum(),
            "l2": np.sqrt((known**2).sum()),
            "lp": np.sqrt((known**2).sum()),
            "vnorm": np.sqrt((known**2).sum()),
        }[how]
        assert got[where] == pytest.approx(expected, rel=1e-5, abs=1e-9)


@given(arrays(need=("layer", "head")), st.sampled_from(SIGNLESS))
def test_nan_stays_nan_along_layers_and_heads(scores: Scores, how: str) -> None:
    i = scores.index("layer")
    reduced = scores.reduce("layer", how)
    np.testing.assert_array_equal(reduced.defined, scores.defined.any(axis=i))
    np.testing.assert_array_equal(reduced.defined, scores.defined.all(axis=i))


@given(arrays(need=("layer", "head")), st.sampled_from(LINEAR))
def test_reductions_of_whole_axes_commute(scores: Scores, how: str) -> None:
    one = scores.reduce("layer", how).reduce("head", how)
    other = scores.reduce("head", how).reduce("layer", how)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-4, atol=1e-4)


@given(arrays(need=("step", "token")), st.sampled_from(["sum", "max", "min", "l1", "l2", "prod"]))
def test_associative_reductions_of_partly_defined_axes_commute(scores: Scores, how: str) -> None:
    one = scores.reduce("step", how).reduce("token", how)
    other = scores.reduce("token", how).reduce("step", how)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-3, atol=1e-4)


@given(arrays(need=("token", "head")), st.sampled_from(sorted(REDUCERS)), st.data())
def test_select_then_reduce_is_reduce_then_select(scores: Scores, how: str, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, scores.shape[scores.index("token")] - 1))
    one = scores.select("token", k).reduce("head", how)
    assert one.equals(scores.reduce("head", how).select("token", k))
    several = scores.select("token", [k]).reduce("head", how)
    assert several.equals(scores.reduce("head", how).select("token", (k, k + 1)))


@given(arrays(need=("token",)), st.data())
def test_merging_with_sum_keeps_totals(scores: Scores, data: st.DataObject) -> None:
    size = scores.shape[scores.index("token")]
    cuts = sorted(data.draw(st.sets(st.integers(0, size), max_size=4)))
    spans = list(zip(cuts[::2], cuts[1::2], strict=False))
    merged = scores.merge("token", spans, "sum")
    np.testing.assert_allclose(
        merged.reduce("token", "sum").values, scores.reduce("token", "sum").values, rtol=1e-3, atol=1e-4
    )
    assert "".join(merged.axis("token").labels) == "".join(scores.axis("token").labels)
    assert len(merged.axis("token")) == size - sum(b - a - 1 for a, b in spans)


@given(arrays())
def test_pickle_and_copy_give_equal_read_only_scores(scores: Scores) -> None:
    for twin in (pickle.loads(pickle.dumps(scores)), copy.deepcopy(scores)):
        assert twin.equals(scores)
        assert not twin.values.flags.writeable


@given(arrays())
def test_difference_with_itself_is_zero_where_defined(scores: Scores) -> None:
    zero = scores - scores
    np.testing.assert_array_equal(zero.defined, scores.defined)
    assert not np.nan_to_num(zero.values).any()
    assert zero.equals(scores.scale(0.0).absolute())


def test_merge_example() -> None:
    scores = scores_of(np.array([[1.0, -5.0, 2.0, np.nan, 4.0]]), "step", "token")
    merged = scores.merge("token", [(1, 3), (3, 5)], "absmax")
    np.testing.assert_array_equal(merged.values, np.float32([[1, -5, 4]]))
    assert merged.axis("token").labels == ("token0", "token1token2", "token3token4")
    assert scores.merge("token", [], "l1").equals(scores)


def test_merged_layers_are_joined_by_a_sign() -> None:
    merged = scores_of(np.ones((1, 1, 3)), "step", "token", "layer").merge("layer", [(0, 2)], "sum")
    assert merged.axis("layer").labels == ("layer0+layer1", "layer2")


def test_absmax_takes_the_first_of_equals() -> None:
    scores = scores_of(np.array([[2.0, -2.0], [-3.0, 3.0]]), "step", "token")
    np.testing.assert_array_equal(scores.reduce("token", "absmax").values, np.float32([2, -3]))


def test_a_function_reduces_defined_scores_and_takes_options() -> None:
    scores = scores_of(np.array([[1.0, 9.0, np.nan], [np.nan] * 3]), "step", "token")
    reduced = scores.reduce("token", np.quantile, q=0.5)
    np.testing.assert_array_equal(reduced.values, np.float32([5, np.nan]))
    assert scores.reduce("token", "lp", ord=np.inf).values[0] == 9


def test_empty_axes_reduce_to_undefined() -> None:
    scores = scores_of(np.zeros((2, 0)), "step", "token")
    assert np.isnan(scores.reduce("token", "max").values).all()
    assert scores.reduce("step", "sum").shape == (0,)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (1, "b"),
        (-1, "d"),
        (np.int64(0), "a"),
        ("c", "c"),
        ([3, 0], "da"),
        (["b", "a"], "ba"),
        (np.array([0, -1]), "ad"),
        (slice(None, None, 2), "ac"),
        (slice(1, 99), "bcd"),
        ((1, 3), "bc"),
        ((None, -1), "abc"),
        ((-2, None), "cd"),
        ((2, 2), ""),
        ([], ""),
    ],
)
def test_select(index: object, expected: str) -> None:
    scores = Scores(np.arange(4.0)[None], (Axis("step", ("s",)), Axis("token", tuple("abcd"))))
    chosen = scores.select("token", index)
    np.testing.assert_array_equal(chosen.values.ravel(), ["abcd".index(c) for c in expected])
    if "token" in chosen.names:
        assert "".join(chosen.axis("token").labels) == expected
    else:
        assert chosen.names == ("step",)
        assert len(expected) == 1


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (4, "no token 4; there are 4"),
        ([0, -4], "token 0 is selected more than once"),
        ("a", r"token 'a' stands at positions \[0, 3\]; select by position"),
        ((0, 5), r"bounds \(0, 5\) do not lie within the 4 entries"),
        ((3, 1), "do not lie within"),
        ((0, 1, 2), "a tuple means a pair"),
        (True, "not True"),
        (1.5, "not 1.5"),
        ([0.5], "select takes positions"),
    ],
)
def test_selections_that_cannot_be_meant(index: object, message: str) -> None:
    scores = Scores(np.zeros((1, 4)), (Axis("step", ("s",)), Axis("token", tuple("abca"))))
    with pytest.raises(InputError, match=message):
        scores.select("token", index)


def test_unknown_names() -> None:
    scores = scores_of(np.zeros((1, 2, 3)), "step", "token", "layer")
    with pytest.raises(InputError, match="no axis 'head'; these scores have step, token, layer"):
        scores.reduce("head", "mean")
    with pytest.raises(UnknownNameError, match=r"unknown reducer 'maximum'\. Did you mean 'max'"):
        scores.reduce("layer", "maximum")
    with pytest.raises(UnknownNameError, match=r"unknown token label 'token7'\. Did you mean 'token"):
        scores.select("token", "token7")
    with pytest.raises(InputError, match="reducer 'mean' takes no option 'ord'"):
        scores.reduce("layer", "mean", ord=3)
    with pytest.raises(InputError, match="order of a norm must be positive"):
        scores.reduce("layer", "lp", ord=0)
    with pytest.raises(UnknownNameError, match="unknown axis 'source'"):
        Axis("source", ("a",))


def test_partly_defined_cells_are_refused_along_layers() -> None:
    scores = scores_of(np.array([[[1.0, np.nan]]]), "step", "token", "layer")
    with pytest.raises(InputError, match="axis 'layer': a cell has 1 defined scores of 2"):
        scores.reduce("layer", "mean")
    assert scores.reduce("token", "mean").shape == (1, 2)


def test_reductions_never_turn_defined_scores_into_nothing() -> None:
    scores = scores_of(np.full((1, 3), 3e38), "step", "token")
    assert scores.reduce("token", "mean").values[0] == pytest.approx(3e38)
    with pytest.raises(NonFiniteScore, match="axis 'token': reducing defined scores gave NaN or infinity"):
        scores.reduce("token", lambda values, axis: np.full(len(values), np.nan))
    with pytest.raises(InputError, match=r"one number per line: 1 lines gave shape \(1, 3\)"):
        scores.reduce("token", lambda values, axis: values)
    with pytest.raises(NonFiniteScore, match="cannot be multiplied by inf"):
        scores.scale(float("inf"))


@pytest.mark.parametrize("spans", [[(0, 0)], [(1, 3), (2, 4)], [(2, 3), (0, 1)], [(2, 9)], [(-2, 0)]])
def test_spans_that_do_not_fit(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(InputError, match="spans are ascending, disjoint and not empty"):
        scores_of(np.zeros((1, 4)), "step", "token").merge("token", spans, "sum")


def test_differences_need_the_same_axes_labels_and_cells() -> None:
    one = Scores(np.array([3.0, 1.0]), (Axis("token", ("a", "b")),))
    two = Scores(np.array([1.0, 4.0]), (Axis("token", ("a", "b")),))
    np.testing.assert_array_equal((one - two).values, np.float32([2, -3]))
    with pytest.raises(InputError, match="token 1 is 'b' and 'c'"):
        one - Scores(np.zeros(2), (Axis("token", ("a", "c")),))
    with pytest.raises(InputError, match="defined in only one"):
        one - Scores(np.array([1.0, np.nan]), one.axes)
    with pytest.raises(InputError, match="different axes"):
        one - Scores(np.zeros(2), (Axis("step", ("a", "b")),))
    with pytest.raises(TypeError):
        one - 1.0


def test_construction_is_checked() -> None:
    with pytest.raises(InputError, match=r"scores have shape \(1, 2\), but axes say \(step=1, token=3\)"):
        Scores(np.zeros((1, 2)), (Axis("step", ("s",)), Axis("token", tuple("abc"))))
    with pytest.raises(InputError, match="axes are token, step; each may come once, in the order step, token"):
        scores_of(np.zeros((1, 2)), "token", "step")
    with pytest.raises(InputError, match="each may come once"):
        scores_of(np.zeros((1, 2)), "step", "step")
    with pytest.raises(InputError, match="labels of axis 'step' must be a sequence of texts"):
        Axis("step", "abc")


def test_nothing_can_be_changed() -> None:
    source = np.zeros((1, 2))
    scores = scores_of(source, "step", "token")
    source[:] = 7
    assert not scores.values.any()
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0, 0] = 1
    with pytest.raises(FrozenInstanceError):
        scores.axes = ()


def test_repr_is_short_and_says_what_is_inside() -> None:
    scores = scores_of(np.array([[1.0, np.nan], [-2.0, 3.0]]), "step", "token")
    assert repr(scores) == "Scores(step=2, token=2; 75% defined, from -2 to 3)"
    assert "nothing defined" in repr(scores_of(np.full((1, 1), np.nan), "step", "token"))
    assert repr(scores.reduce("step", "sum").reduce("token", "sum")) == ("Scores(no axes; all defined, from 2 to 2)")


def test_pandas_tables_and_long_form() -> None:
    pytest.importorskip("pandas")
    scores = scores_of(np.arange(12.0).reshape(2, 3, 2), "step", "token", "layer")
    table = scores.select("layer", 1).to_pandas()
    assert list(table.index) == ["step0", "step1"]
    assert list(table.columns) == ["token0", "token1", "token2"]
    assert table.loc["step1", "token2"] == 11
    long = scores.to_pandas()
    assert list(long.columns) == [
        "step",
        "step_label",
        "token",
        "token_label",
        "layer",
        "layer_label",
        "score",
    ]
    row = long[(long.step == 1) & (long.token_label == "token0") & (long.layer == 1)]
    assert row.score.item() == 7
    assert len(scores.select("layer", 0).select("step", 0).to_pandas()) == 3


def test_xarray_keeps_axes_and_labels() -> None:
    pytest.importorskip("xarray")
    scores = scores_of(np.arange(6.0).reshape(2, 3), "step", "token")
    array = scores.to_xarray()
    assert array.dims == ("step", "token")
    assert array.sel(step="step1", token="token2").item() == 5


def test_torch_gives_a_copy() -> None:
    torch = pytest.importorskip("torch")
    scores = scores_of(np.arange(6.0).reshape(2, 3), "step", "token")
    tensor = scores.torch()
    tensor += 1
    assert tensor.dtype == torch.float32
    assert scores.values[0, 0] == 0
