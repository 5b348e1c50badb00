"""Completeness: the scores of a step sum to the difference between input and baseline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from tiny_models import FAMILIES, tiny_model
from whence.methods.gradient.quadrature import RULES, quadrature

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
# Where the choice of experts changes, the target jumps, and no gradient sees a jump: here every expert is taken
# (test_derivatives shows both).
EVERY_EXPERT = {"qwen3_moe": {"num_experts_per_tok": 4}, "gpt_oss": {"num_experts_per_tok": 4}}


def gap_of(model, n_steps, **options):
    """Largest gap, relative to the difference between f(x) and f(baseline), with both found by hand.

    Relative to the largest difference of the steps: where one step happens not to differ, a ratio says nothing.
    """
    out = model.attribute(
        PROMPT, CONTINUATION, method="integrated_gradients", target="logit", baseline="mean", n_steps=n_steps,
        step_scores=["logit"], **options,
    )  # fmt: skip
    low = reference_logits(model, out)
    difference = out.step_scores["logit"].astype(float) - low
    total = np.nansum(out.scores.values.astype(float), axis=1)
    return np.abs(total - difference).max() / np.abs(difference).max()


def reference_logits(model, out):
    """Logits of the targets with every free token's embedding at the mean, by plain hooks on the untraced model."""
    from slow_reference import embedding_modules, outputs_replaced

    hf = model.nn._module
    rows = model.embedding_rows([])
    fixed = [torch.tensor([t.fixed for t in out.tokens if t.side == side]) for side in ("source", "prefix")]
    if not model.encoder_decoder:
        fixed = [torch.cat(fixed)]

    def replaced(stream):
        mean = list(rows.values())[stream]["mean"]

        def fn(value):
            return torch.where(fixed[stream][None, :, None], value, mean.to(value).expand_as(value))

        return fn

    swaps = [(module, replaced(k)) for k, module in enumerate(embedding_modules(hf))]
    if model.encoder_decoder:
        start = hf.config.decoder_start_token_id
        ids = {
            "input_ids": torch.tensor([PROMPT]),
            "decoder_input_ids": torch.tensor([[start, *CONTINUATION[:-1]]]),
        }
        first = 0
    else:
        ids = {"input_ids": torch.tensor([[*PROMPT, *CONTINUATION[:-1]]])}
        first = len(PROMPT) - 1
    with torch.no_grad(), outputs_replaced(swaps):
        logits = hf(**ids, use_cache=False).logits[0, first:]
    return logits[torch.arange(3), CONTINUATION].double().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_gap_is_under_one_percent_at_50_points_and_shrinks(family):
    model = whence.load(tiny_model(family, dtype=torch.float64, **EVERY_EXPERT.get(family, {})))
    at_50 = gap_of(model, 50)
    assert at_50 < 0.01
    assert at_50 < gap_of(model, 3)


def test_reported_gap_is_the_gap():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    out = model.attribute(
        PROMPT, CONTINUATION, method="integrated_gradients", target="logit", baseline="mean", n_steps=2,
        step_scores=["logit"],
    )  # fmt: skip
    check = {one.name: one for one in out.checks}["completeness"]
    low = reference_logits(model, out)
    high = out.step_scores["logit"].astype(float)
    total = np.nansum(out.scores.values.astype(float), axis=1)
    scale = np.maximum(np.maximum(np.abs(high), np.abs(low)), np.nansum(np.abs(out.scores.values), axis=1))
    assert check.value == pytest.approx((np.abs(total - (high - low)) / scale).max(), rel=1e-3)
    assert check.tolerance == 2e-2


def test_a_failed_check_marks_the_result_and_raises_when_strict():
    model = whence.load(tiny_model("llama"))
    options = {"method": "integrated_gradients", "n_steps": 1, "rule": "left", "baseline": "zero", "target": "logit"}
    out = model.attribute(PROMPT, CONTINUATION, **options)
    assert not out.verified
    with pytest.raises(whence.CheckFailed, match="completeness"):
        model.attribute(PROMPT, CONTINUATION, strict=True, **options)


def test_auto_takes_points_until_completeness_holds():
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method="integrated_gradients", n_steps="auto")
    assert out.info["engine"]["n_steps"] in (16, 32, 64, 128, 256, 512)
    assert out.verified


def test_units_sum_to_the_scores_and_average_gradient_does_not():
    model = whence.load(tiny_model("qwen2"))
    options = {"method": "integrated_gradients", "n_steps": 4, "baseline": "mean"}
    plain = model.attribute(PROMPT, CONTINUATION, **options)
    units = model.attribute(PROMPT, CONTINUATION, units=True, **options)
    average = model.attribute(PROMPT, CONTINUATION, multiply_by_inputs=False, **options)
    assert units.scores.names == average.scores.names == ("step", "token", "unit")
    np.testing.assert_allclose(units.scores.values.sum(-1), plain.scores.values, rtol=1e-4, atol=1e-7)
    assert "completeness" not in {check.name for check in average.checks}
    rows = model.embedding_rows(PROMPT)["decoder"]
    moved = (rows["rows"] - rows["mean"]).numpy()
    product = (average.scores.values[:, :5] * moved).sum(-1)
    np.testing.assert_allclose(product, plain.scores.values[:, :5], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_quadrature_rules_integrate_polynomials(rule):
    points, weights = quadrature(rule, 8)
    assert sum(weights) == pytest.approx(1)
    degree = {"gauss_legendre": 15, "trapezoid": 1, "midpoint": 1, "left": 0, "right": 0}[rule]
    for power in range(degree + 1):
        found = sum(w * p**power for p, w in zip(points, weights, strict=True))
        assert found == pytest.approx(1 / (power + 1), rel=1e-9)
    too_high = sum(w * p ** (degree + 1) for p, w in zip(points, weights, strict=True))
    assert abs(too_high - 1 / (degree + 2)) > 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps is a whole number of at least 1"),
        ({"n_steps": 1, "rule": "trapezoid"}, "at least 2"),
        ({"rule": "simpson"}, "unknown quadrature rule 'simpson'"),
        ({"units": True, "multiply_by_inputs": False}, "implied"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.IntegratedGradients(**options)
