"""Central differences: what a place without gradients can still give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import whence
from tiny_models import FAMILIES, tiny_model
from whence.core.contract import AbstractMethod, Answer, Need

PROMPT, CONTINUATION = [7, 21, 9, 33], [17, 8, 40]
# Rounding of float32 in the difference of two targets of size ten, over a step of half a percent.
FLOOR = 2e-4
# Units that switch on or off inside the step have a slope on one side only.
KINKED = frozenset({"opt", "m2m_100"})
ROUTED = frozenset({"qwen3_moe", "gpt_oss"})


# The path begins at an embedding as long as the others. At their mean, much shorter, norms turn so quickly that the
# difference is a percent of the derivative off in float64 too, and rounding decides on which side of the limit.
# The target of routed experts jumps where the choice of experts changes, and differences see the jump.
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - ROUTED))
@pytest.mark.parametrize(
    ("method", "options"), [("input_x_gradient", {}), ("integrated_gradients", {"n_steps": 6, "baseline": 11})]
)
def test_equals_the_exact_derivative(family, method, options):
    model = whence.load(tiny_model(family))
    options = {**options, "method": method, "target": "logprob"}
    exact = model.attribute(PROMPT, CONTINUATION, **options).scores.values
    out = model.attribute(PROMPT, CONTINUATION, derivative="finite", **options)
    rough = out.scores.values
    np.testing.assert_array_equal(np.isnan(exact), np.isnan(rough))
    share = 0.15 if family in KINKED else 0.01
    assert np.nanmax(np.abs(rough - exact)) <= share * np.nanmax(np.abs(exact)) + FLOOR
    engine = out.info["engine"]
    assert engine["mode"] == "finite"
    assert engine["vjps"] == engine["jvps"] == 0
    assert {"no-op", "additivity"} <= {check.name for check in out.checks}


def test_deeper_layers_and_segments():
    model = whence.load(tiny_model("gpt2"))
    options = {"method": "integrated_gradients", "n_steps": 5, "layer": "all", "segments": [[0, 1], [2, 3], [4, 5]]}
    exact = model.attribute(PROMPT, CONTINUATION, target="logit", **options).scores.values
    rough = model.attribute(PROMPT, CONTINUATION, target="logit", derivative="finite", **options).scores.values
    np.testing.assert_allclose(rough, exact, atol=1e-3 * np.nanmax(np.abs(exact)))


def test_no_gradient_is_ever_taken():
    model = whence.load(tiny_model("llama"))
    with torch.inference_mode():
        out = model.attribute(PROMPT, CONTINUATION, derivative="finite")
    assert np.isfinite(out.scores.values[0, 0])


def test_additivity_notices_a_step_that_is_too_small(monkeypatch):
    from whence.probe import finite_mode

    model = whence.load(tiny_model("llama"))
    slopes = finite_mode.slopes

    def noisy(*arguments):
        found = slopes(*arguments)
        return found + 0.3 * found.abs().max() * torch.linspace(-1, 1, found.numel()).view(found.shape)

    monkeypatch.setattr(finite_mode, "slopes", noisy)
    out = model.attribute(PROMPT, CONTINUATION, derivative="finite", target="logit")
    assert "additivity" in [check.name for check in out.checks if check.passed is False]


@dataclass(frozen=True)
class Count(AbstractMethod):
    """A method without derivatives."""

    name: ClassVar[str] = "count"
    title: ClassVar[str] = "nothing"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = "0"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True

    def __call__(self, probe):
        return Answer(torch.zeros(*probe.here.shape, probe.feature_count))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "saliency"}, "UnsupportedError", "whole gradient"),
        ({"method": "input_x_gradient", "units": True}, "UnsupportedError", "whole gradient"),
        ({"method": "integrated_gradients", "multiply_by_inputs": False}, "UnsupportedError", "whole gradient"),
        ({"method": "input_x_gradient", "mode": "reverse"}, "InputError", "in place of mode="),
        ({"method": Count()}, "InputError", "gradient method"),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_runs(options, error, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(getattr(whence, error), match=message):
        model.attribute(PROMPT, CONTINUATION, derivative="finite", **options)


def test_an_unknown_kind_of_derivative():
    with pytest.raises(whence.InputError, match="exact, finite"):
        whence.load(tiny_model("gpt2")).attribute(PROMPT, CONTINUATION, derivative="symbolic")
