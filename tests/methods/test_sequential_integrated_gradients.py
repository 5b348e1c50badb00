"""sequential_integrated_gradients against plain hooks: one token at a time, and its identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_draws import kept_start, lowered, placed, relative, slope, steps_of
from slow_reference import gauss_legendre, gradients
from tiny_models import tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
METHOD = "sequential_integrated_gradients"


def means(model):
    """The mean row of each embedding matrix."""
    return [rows["mean"] for rows in model.embedding_rows([]).values()]


def one_moved(clean, low, number, place, share=0.0):
    """The input with one token on its way from its reference."""
    at = [value.clone() for value in clean]
    at[number][0, place] = low[number][0, place] + share * (clean[number][0, place] - low[number][0, place])
    return at


def slow_losses(hf, vectors, target):
    """What each step loses with one token at a time at its reference."""
    scores = []
    for _, token, inputs, clean in steps_of(hf, PROMPT, CONTINUATION):
        low = lowered(clean, vectors, kept_start(hf))
        top = gradients(hf, inputs, clean, target, token)[1]
        scores.append(
            torch.tensor(
                [
                    top - gradients(hf, inputs, one_moved(clean, low, number, place), target, token)[1]
                    for number, value in enumerate(clean)
                    for place in range(value.shape[1])
                ],
                dtype=torch.float64,
            )
        )
    return placed(scores, len(scores[-1]))


def slow_units(hf, vectors, target, n_steps):
    """The products of every unit, one token and one point at a time."""
    nodes, weights = gauss_legendre(n_steps)
    scores = []
    for _, token, inputs, clean in steps_of(hf, PROMPT, CONTINUATION):
        low = lowered(clean, vectors, kept_start(hf))
        rows, start = [], 0
        for number, value in enumerate(clean):
            for place in range(value.shape[1]):
                total = torch.zeros(value.shape[2], dtype=torch.float64)
                for node, weight in zip(nodes, weights, strict=True):
                    grad = slope(hf, inputs, one_moved(clean, low, number, place, node), target, token)
                    total += weight * grad[start + place] * (value[0, place] - low[number][0, place])
                rows.append(total)
            start += value.shape[1]
        scores.append(torch.stack(rows))
    return placed(scores, len(scores[-1]))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "falcon", "t5", "marian"])
def test_exact_scores_are_what_is_lost_without_the_token(family):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    expected = slow_losses(hf, means(model), "logprob")
    out = model.attribute(PROMPT, CONTINUATION, method=METHOD, target="logprob", baseline="mean")
    assert relative(out.scores.values, expected) < 1e-5


@pytest.mark.parametrize(("family", "mode"), [("gpt2", "forward"), ("gpt_neox", "reverse"), ("marian", "auto")])
def test_integrating_gives_the_same(family, mode):
    model = whence.load(tiny_model(family, dtype=torch.float64))
    options = {"method": METHOD, "target": "logit", "baseline": "mean"}
    exact = model.attribute(PROMPT, CONTINUATION, **options)
    out = model.attribute(PROMPT, CONTINUATION, exact=False, n_steps=40, mode=mode, **options)
    assert relative(out.scores.values, exact.scores.values) < 1e-4
    check = {one.name: one for one in out.checks}["occlusion"]
    assert check.passed
    assert out.info["engine"]["mode"] == ("reverse" if mode == "reverse" else "forward")


def test_the_check_shows_too_few_points():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    options = {"method": METHOD, "target": "logit", "baseline": "mean", "step_scores": ["logit"]}
    exact = model.attribute(PROMPT, CONTINUATION, **options)
    out = model.attribute(PROMPT, CONTINUATION, exact=False, n_steps=1, rule="left", **options)
    gap = np.nanmax(np.abs(out.scores.values - exact.scores.values), axis=1)
    scale = np.maximum(np.nansum(np.abs(exact.scores.values), axis=1), np.abs(out.step_scores["logit"]))
    check = {one.name: one for one in out.checks}["occlusion"]
    assert check.value == pytest.approx((gap / scale).max(), rel=1e-4)
    assert check.passed is False


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_units_equal_one_point_at_a_time(family):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    expected = slow_units(hf, means(model), "logprob", 2)
    out = model.attribute(
        PROMPT, CONTINUATION, method=METHOD, target="logprob", baseline="mean", exact=False, n_steps=2, units=True
    )
    assert out.scores.names == ("step", "token", "unit")
    assert relative(out.scores.values, expected) < 1e-5


def test_a_single_feature_is_integrated_gradients():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    options = {"target": "logit", "baseline": "mean", "segments": [list(range(7))], "n_steps": 5}
    whole = model.attribute(PROMPT, CONTINUATION, method="integrated_gradients", **options)
    out = model.attribute(PROMPT, CONTINUATION, method=METHOD, exact=False, **options)
    assert relative(out.scores.values, whole.scores.values) < 1e-6


def test_a_segment_goes_to_the_reference_as_a_whole():
    hf = tiny_model("gpt2", dtype=torch.float64)
    model = whence.load(hf)
    vectors = means(model)
    _, token, inputs, clean = next(steps_of(hf, PROMPT, CONTINUATION))
    low = lowered(clean, vectors, lambda stream, place: place not in (1, 3))
    lost = gradients(hf, inputs, clean, "logit", token)[1] - gradients(hf, inputs, low, "logit", token)[1]
    options = {"method": METHOD, "target": "logit", "baseline": "mean", "segments": [[0, 2, 4], [1, 3], [5, 6]]}
    for exact in ({}, {"exact": False, "n_steps": 30}):
        out = model.attribute(PROMPT, CONTINUATION, **exact, **options)
        assert out.scores.values[0, 1] == pytest.approx(lost, rel=1e-4)


def test_layers():
    model = whence.load(tiny_model("llama", dtype=torch.float64))
    options = {"method": METHOD, "target": "logit", "baseline": "mean", "keep": "none"}
    out = model.attribute(PROMPT, CONTINUATION, exact=False, n_steps=30, layer="all", **options)
    assert out.scores.names == ("step", "token", "layer")
    assert {check.name: check.passed for check in out.checks}["occlusion"]
    exact = model.attribute(PROMPT, CONTINUATION, layer="all", **options)
    assert relative(out.scores.values, exact.scores.values) < 1e-3
    assert out.scores.axes == exact.scores.axes
    one = model.attribute(PROMPT, CONTINUATION, layer=1, **options)
    assert relative(one.scores.values, exact.scores.values[..., 1]) < 1e-6


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_batch_of_different_lengths_equals_each_alone(family):
    model = whence.load(tiny_model(family))
    prompts, texts = [[7, 21, 9, 33, 12, 50], [30, 12]], [[17, 8], [40, 11, 19]]
    for options in ({}, {"exact": False, "n_steps": 3}):
        options = {"method": METHOD, "target": "logprob", **options}
        for one, prompt, text in zip(model.attribute(prompts, texts, **options), prompts, texts, strict=True):
            alone = model.attribute(prompt, text, **options)
            assert relative(one.scores.values, alone.scores.values) < 1e-5


def test_fixed_tokens_get_nothing():
    model = whence.load(tiny_model("gpt2"))
    for options in ({}, {"exact": False, "n_steps": 2}):
        out = model.attribute(PROMPT, CONTINUATION, method=METHOD, keep=[0, 3], **options)
        assert np.nanmax(np.abs(out.scores.values[:, [0, 3]])) == 0
        assert np.nanmin(np.abs(out.scores.values[:, [1, 2]])) > 0
    nothing = model.attribute(PROMPT, CONTINUATION, method=METHOD, keep=list(range(7)))
    assert np.nanmax(np.abs(nothing.scores.values)) == 0


def test_without_tangents_the_exact_way_is_named():
    model = whence.load(tiny_model("bloom"))
    with pytest.raises(whence.UnsupportedError, match=r"forward mode is not possible here.*exact=True"):
        model.attribute(PROMPT, CONTINUATION, method=METHOD, exact=False)
    out = model.attribute(PROMPT, CONTINUATION, method=METHOD, exact=False, n_steps=20, derivative="finite")
    exact = model.attribute(PROMPT, CONTINUATION, method=METHOD)
    assert relative(out.scores.values, exact.scores.values) < 2e-2


def test_cost():
    model = whence.load(tiny_model("gpt2"))
    tokens = len(PROMPT) + len(CONTINUATION) - 1
    out = model.attribute(PROMPT, CONTINUATION, method=METHOD, exact=False, n_steps=4)
    assert out.info["engine"]["jvps"] == 4 * tokens
    assert out.info["engine"]["rows"] == 5 * tokens + 2
    estimate = model.estimate(PROMPT, CONTINUATION, method=METHOD)
    assert (estimate.forwards, estimate.derivatives) == (tokens + 1, 0)
    estimate = model.estimate(PROMPT, CONTINUATION, method=METHOD, exact=False, n_steps=4)
    assert (estimate.mode, estimate.derivatives) == ("forward", 4 * tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 10}, "belong to exact=False"),
        ({"rule": "left"}, "belong to exact=False"),
        ({"units": True}, "belong to exact=False"),
        ({"exact": False, "n_steps": 0}, "n_steps is a whole number"),
        ({"exact": False, "rule": "simpson"}, "unknown quadrature rule"),
        ({"exact": False, "units": True, "keep": list(range(7))}, "no feature can be moved"),
        ({"derivative": "finite"}, "gradient method"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, method=METHOD, **options)
