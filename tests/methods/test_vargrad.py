"""vargrad against plain PyTorch, one noisy input at a time; 0 where nothing varies."""

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
            noise = noisy(clean, "vargrad", sample, stdev, kept_start(hf))
            found.append(slope(hf, inputs, [x + e for x, e in zip(clean, noise, strict=True)], target, token))
        together = torch.stack(found)
        scores.append(together.var(0, correction=0).sum(-1))
        # The scatter is the sum of one term per draw after the first: its deviation from the mean before it.
        terms = torch.stack(
            [(together[k] - together[:k].mean(0)).square().sum(-1) * k / (k + 1) for k in range(1, n_samples)]
        )
        assert torch.allclose(terms.sum(0) / n_samples, scores[-1])
        errors.append(terms.std(0) * (n_samples - 1) ** 0.5 / n_samples)
    return placed(scores, len(scores[-1])), placed(errors, len(scores[-1]))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "t5", "marian"])
def test_equals_one_draw_at_a_time(family):
    hf = tiny_model(family, dtype=torch.float64)
    scores, errors = slow(hf, n_samples=6, stdev=0.2, target="logprob")
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="vargrad", n_samples=6, stdev=0.2, target="logprob")
    assert relative(out.scores.values, scores) < 1e-5
    assert relative(out.extras["standard_error"].values, errors) < 1e-4
    assert out.verified


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_batches_layers_and_segments(family):
    model = whence.load(tiny_model(family))
    prompts, texts = [[7, 21, 9, 33, 12, 50], [30, 12]], [[17, 8], [40, 11, 19]]
    options = {"method": "vargrad", "target": "logprob", "n_samples": 4, "stdev": 0.3}
    for where in ({}, {"layer": "all"}):
        for one, prompt, text in zip(model.attribute(prompts, texts, **where, **options), prompts, texts, strict=True):
            alone = model.attribute(prompt, text, **where, **options)
            assert relative(one.scores.values, alone.scores.values) < 1e-5
    tokens = model.attribute(PROMPT, CONTINUATION, **options).scores.values
    joint = model.attribute(PROMPT, CONTINUATION, segments=[[0, 1, 2], [3, 4]], **options).scores.values
    assert joint[0, 0] == pytest.approx(tokens[0, :3].sum(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_linear_target_it_is_nothing(dtype):
    """The logit is linear in what the last norm returns, and the gradient there a hundred times the tolerance."""
    hf = tiny_model("llama", dtype=dtype)
    with torch.no_grad():
        hf.lm_head.weight.mul_(100)
    model = whence.load(hf)
    options = {"layer": "ln_final", "target": "logit"}
    steep = model.attribute(PROMPT, CONTINUATION, method="saliency", **options).scores.values
    assert np.nanmax(steep) > 100
    out = model.attribute(PROMPT, CONTINUATION, method="vargrad", stdev=1.0, n_samples=50, **options)
    assert np.nanmax(out.scores.values) < 1e-6
    assert np.nanmax(out.extras["standard_error"].values) < 1e-6


def test_the_standard_error_is_how_much_it_differs_from_seed_to_seed():
    model = whence.load(tiny_model("gpt2"))
    options = {"method": "vargrad", "target": "logit", "n_samples": 30, "stdev": 0.2, "steps": [2]}
    runs = [model.attribute(PROMPT, CONTINUATION, seed=seed, **options) for seed in range(40)]
    between = np.std([run.scores.values for run in runs], axis=0, ddof=1)
    within = np.mean([run.extras["standard_error"].values for run in runs], axis=0)
    ratio = between / within
    assert np.nanmin(ratio) > 0.6
    assert np.nanmax(ratio) < 1.6


def test_two_draws_have_no_standard_error_and_one_no_variance():
    model = whence.load(tiny_model("gpt2"))
    two = model.attribute(PROMPT, CONTINUATION, method="vargrad", n_samples=2)
    assert "standard_error" not in two.extras
    one = model.attribute(PROMPT, CONTINUATION, method="vargrad", n_samples=1)
    assert np.nanmax(one.scores.values) == 0


def test_cost():
    model = whence.load(tiny_model("gpt2"))
    engine = model.attribute(PROMPT, CONTINUATION, method="vargrad", n_samples=5).info["engine"]
    assert (engine["rows"], engine["vjps"]) == (5 + 1, 5 * len(CONTINUATION))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "n_samples is a whole number of at least 1"),
        ({"stdev": "much"}, "stdev is a number above 0 up to 1"),
        ({"baseline": 11}, "compares with nothing"),
        ({"mode": "forward"}, "whole gradient"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, method="vargrad", **options)
