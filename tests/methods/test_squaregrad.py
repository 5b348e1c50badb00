"""squaregrad against plain PyTorch, one noisy input at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_draws import kept_start, noisy, placed, relative, slope, steps_of
from tiny_models import tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def slow(hf, *, n_samples, stdev, target):
    """Scores and standard errors."""
    scores, errors = [], []
    for _, token, inputs, clean in steps_of(hf, PROMPT, CONTINUATION):
        found = []
        for sample in range(n_samples):
            noise = noisy(clean, "squaregrad", sample, stdev, kept_start(hf))
            found.append(slope(hf, inputs, [x + e for x, e in zip(clean, noise, strict=True)], target, token))
        together = torch.stack(found)
        values = together.square().sum(-1)
        scores.append(values.mean(0))
        errors.append(values.std(0) / n_samples**0.5)
    return placed(scores, len(scores[-1])), placed(errors, len(scores[-1]))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "t5", "marian"])
def test_equals_one_draw_at_a_time(family):
    hf = tiny_model(family, dtype=torch.float64)
    scores, errors = slow(hf, n_samples=6, stdev=0.2, target="logprob")
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="squaregrad", n_samples=6, stdev=0.2, target="logprob")
    assert relative(out.scores.values, scores) < 1e-5
    assert relative(out.extras["standard_error"].values, errors) < 1e-4
    assert out.verified


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_batches_layers_and_segments(family):
    model = whence.load(tiny_model(family))
    prompts, texts = [[7, 21, 9, 33, 12, 50], [30, 12]], [[17, 8], [40, 11, 19]]
    options = {"method": "squaregrad", "target": "logprob", "n_samples": 4, "stdev": 0.3}
    for where in ({}, {"layer": "all"}):
        for one, prompt, text in zip(model.attribute(prompts, texts, **where, **options), prompts, texts, strict=True):
            alone = model.attribute(prompt, text, **where, **options)
            assert relative(one.scores.values, alone.scores.values) < 1e-5
    tokens = model.attribute(PROMPT, CONTINUATION, **options).scores.values
    joint = model.attribute(PROMPT, CONTINUATION, segments=[[0, 1, 2], [3, 4]], **options).scores.values
    assert joint[0, 0] == pytest.approx(tokens[0, :3].sum(), rel=1e-5)


def test_without_noise_it_is_the_square_of_saliency():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    plain = model.attribute(PROMPT, CONTINUATION, method="saliency", target="logit").scores.values
    out = model.attribute(PROMPT, CONTINUATION, method="squaregrad", n_samples=2, stdev=1e-8, target="logit")
    assert relative(out.scores.values, plain**2) < 1e-5
    assert np.nanmax(out.extras["standard_error"].values) < 1e-6


def test_cost():
    model = whence.load(tiny_model("gpt2"))
    engine = model.attribute(PROMPT, CONTINUATION, method="squaregrad", n_samples=5).info["engine"]
    assert (engine["rows"], engine["vjps"]) == (5 + 1, 5 * len(CONTINUATION))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 1.5}, "n_samples is a whole number of at least 1"),
        ({"stdev": 0}, "stdev is a number above 0 up to 1"),
        ({"baseline": "mean"}, "compares with nothing"),
        ({"mode": "forward"}, "whole gradient"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, method="squaregrad", **options)
