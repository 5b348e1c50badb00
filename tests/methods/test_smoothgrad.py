"""smoothgrad against plain PyTorch, one noisy input at a time, and what its noise depends on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_draws import joined, kept_start, noisy, placed, relative, slope, steps_of
from tiny_models import tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def slow(hf, *, base, n_samples, stdev, target):
    """Scores and standard errors."""
    fixed = kept_start(hf)
    scores, errors = [], []
    for _, token, inputs, clean in steps_of(hf, PROMPT, CONTINUATION):
        found = []
        for sample in range(n_samples):
            noise = noisy(clean, "smoothgrad", sample, stdev, fixed)
            at = [x + e for x, e in zip(clean, noise, strict=True)]
            grad = slope(hf, inputs, at, target, token)
            found.append(grad if base == "saliency" else (grad * joined(at)).sum(-1))
        together = torch.stack(found)
        mean, error = together.mean(0), together.std(0, correction=min(1, n_samples - 1)) / n_samples**0.5
        scores.append(mean.norm(dim=-1) if base == "saliency" else mean)
        errors.append(error.norm(dim=-1) if base == "saliency" else error)
    return placed(scores, len(scores[-1])), placed(errors, len(scores[-1]))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "t5", "marian"])
@pytest.mark.parametrize("base", ["saliency", "input_x_gradient"])
def test_equals_one_draw_at_a_time(family, base):
    hf = tiny_model(family, dtype=torch.float64)
    scores, errors = slow(hf, base=base, n_samples=5, stdev=0.2, target="logprob")
    out = whence.load(hf).attribute(
        PROMPT, CONTINUATION, method="smoothgrad", base=base, n_samples=5, stdev=0.2, target="logprob", mode="auto"
    )
    assert relative(out.scores.values, scores) < 1e-5
    assert relative(out.extras["standard_error"].values, errors) < 1e-4
    assert {check.name for check in out.checks} >= {"no-op", "leak"}
    assert out.verified


@pytest.mark.parametrize("base", ["saliency", "input_x_gradient"])
def test_without_noise_it_is_its_base(base):
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    plain = model.attribute(PROMPT, CONTINUATION, method=base, target="logit")
    out = model.attribute(PROMPT, CONTINUATION, method="smoothgrad", base=base, n_samples=2, stdev=1e-8, target="logit")
    assert relative(out.scores.values, plain.scores.values) < 1e-5
    everything = list(range(7))
    kept = model.attribute(PROMPT, CONTINUATION, method="smoothgrad", base=base, keep=everything, target="logit")
    assert relative(kept.scores.values, plain.scores.values) < 1e-5


def test_a_single_draw_has_no_standard_error():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    scores, _ = slow(model.nn._module, base="saliency", n_samples=1, stdev=0.3, target="logit")
    out = model.attribute(PROMPT, CONTINUATION, method="smoothgrad", n_samples=1, stdev=0.3, target="logit")
    assert relative(out.scores.values, scores) < 1e-5
    assert "standard_error" not in out.extras


def test_of_a_linear_target_it_is_the_gradient():
    """The logit is linear in what the last norm returns: the gradient is the token's row of the unembedding."""
    hf = tiny_model("llama", dtype=torch.float64)
    options = {"method": "smoothgrad", "layer": "ln_final", "target": "logit", "stdev": 1.0, "n_samples": 3}
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, **options)
    rows = hf.lm_head.weight.detach()[CONTINUATION].norm(dim=-1).numpy()
    predicting = [len(PROMPT) - 1 + step for step in range(3)]
    np.testing.assert_allclose(out.scores.values[range(3), predicting], rows, rtol=1e-6)
    # Nothing of the noise is left, not even by rounding.
    assert np.nanmax(out.extras["standard_error"].values) < 1e-12


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("base", ["saliency", "input_x_gradient"])
def test_batches_and_layers(family, base):
    model = whence.load(tiny_model(family))
    prompts, texts = [[7, 21, 9, 33, 12, 50], [30, 12]], [[17, 8], [40, 11, 19]]
    options = {"method": "smoothgrad", "base": base, "target": "logprob", "n_samples": 3, "stdev": 0.3}
    for where in ({}, {"layer": "all"}):
        together = model.attribute(prompts, texts, **where, **options)
        for one, prompt, text in zip(together, prompts, texts, strict=True):
            alone = model.attribute(prompt, text, **where, **options)
            assert relative(one.scores.values, alone.scores.values) < 1e-5
            errors = one.extras["standard_error"].values
            assert relative(errors, alone.extras["standard_error"].values) < 1e-3
    deep = model.attribute(PROMPT, CONTINUATION, layer="all", **options).scores.values
    for layer in range(2):
        one = model.attribute(PROMPT, CONTINUATION, layer=layer, **options).scores.values
        assert relative(deep[..., layer], one) < 1e-5


def test_noise_depends_on_the_seed_and_not_on_the_steps():
    model = whence.load(tiny_model("llama"))
    options = {"method": "smoothgrad", "n_samples": 2, "stdev": 0.5}
    whole = model.attribute(PROMPT, CONTINUATION, **options).scores.values
    shorter = model.attribute(PROMPT, CONTINUATION[:2], **options).scores.values
    assert relative(shorter, whole[:2, :6]) < 1e-5
    assert relative(model.attribute(PROMPT, CONTINUATION, seed=3, **options).scores.values, whole) > 1e-2


def test_units_and_segments():
    model = whence.load(tiny_model("gpt2"))
    options = {"method": "smoothgrad", "n_samples": 3, "target": "logit"}
    plain = model.attribute(PROMPT, CONTINUATION, **options)
    units = model.attribute(PROMPT, CONTINUATION, units=True, **options)
    assert relative(np.linalg.norm(units.scores.values, axis=-1), plain.scores.values) < 1e-5
    joint = model.attribute(PROMPT, CONTINUATION, segments=[[0, 1, 2, 3, 4], [5, 6]], **options).scores.values
    assert joint[0, 0] == pytest.approx(np.linalg.norm(plain.scores.values[0, :5]), rel=1e-5)
    options |= {"base": "input_x_gradient"}
    plain = model.attribute(PROMPT, CONTINUATION, **options)
    units = model.attribute(PROMPT, CONTINUATION, units=True, **options)
    assert relative(units.scores.values.sum(-1), plain.scores.values) < 1e-4


def test_a_side_that_is_not_asked_for_gets_no_noise():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    options = {"method": "vargrad", "layer": None, "target": "logit", "n_samples": 3}
    source = model.attribute(PROMPT, CONTINUATION, sides="source", **options).scores.values
    kept = model.attribute(PROMPT, CONTINUATION, keep=[5, 6], **options).scores.values
    assert relative(source[:, :5], kept[:, :5]) < 1e-5
    assert np.isnan(source[:, 5:]).all()


def test_with_a_baseline_products_are_with_the_distance_from_it():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    options = {"base": "input_x_gradient", "target": "logit", "baseline": "mean"}
    plain = model.attribute(PROMPT, CONTINUATION, method="input_x_gradient", target="logit", baseline="mean")
    out = model.attribute(PROMPT, CONTINUATION, method="smoothgrad", n_samples=2, stdev=1e-8, **options)
    assert relative(out.scores.values, plain.scores.values) < 1e-5


def test_cost():
    model = whence.load(tiny_model("gpt2"))
    engine = model.attribute(PROMPT, CONTINUATION, method="smoothgrad", n_samples=6).info["engine"]
    assert (engine["rows"], engine["vjps"]) == (6 + 1, 6 * len(CONTINUATION))
    assert model.estimate(PROMPT, CONTINUATION, method="smoothgrad", n_samples=6).derivatives == 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "deeplift"}, "unknown base of smoothgrad"),
        ({"n_samples": 0}, "n_samples is a whole number of at least 1"),
        ({"stdev": 0.0}, "stdev is a number above 0 up to 1"),
        ({"stdev": 1.5}, "stdev is a number above 0 up to 1"),
        ({"baseline": "mean"}, "replaces nothing with these options"),
        ({"derivative": "finite"}, "whole gradient"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, method="smoothgrad", **options)
