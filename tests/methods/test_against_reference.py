"""Every method on every family against plain PyTorch, one step at a time, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_reference import attribution
from tiny_models import FAMILIES, VARIANTS, tiny_model

ALL = (*FAMILIES, *VARIANTS)
PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
N_STEPS = 6


@pytest.fixture(params=ALL)
def family(request):
    return request.param


@pytest.fixture
def hf(family):
    return tiny_model(family, dtype=torch.float64)


def relative(found, expected):
    """Largest difference, relative to the largest expected number, and equal NaN."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    return np.nanmax(np.abs(found - expected)) / np.nanmax(np.abs(expected))


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient"])
def test_gradient_methods_equal_stepwise_autograd(hf, method):
    expected, _ = attribution(hf, PROMPT, CONTINUATION, method=method, target="logprob")
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method=method, target="logprob")
    assert relative(out.scores.values, expected.numpy()) < 1e-4
    assert out.verified


def test_integrated_gradients_equal_stepwise_autograd(hf):
    model = whence.load(hf)
    rows = model.embedding_rows([])
    baselines = [rows[stack]["mean"].double() for stack in rows]
    expected, _ = attribution(
        hf,
        PROMPT,
        CONTINUATION,
        method="integrated_gradients",
        target="probability",
        baselines=baselines,
        fixed=lambda stream, place: stream == 1 and place == 0,
        n_steps=N_STEPS,
    )
    out = model.attribute(PROMPT, CONTINUATION, method="integrated_gradients", baseline="mean", n_steps=N_STEPS)
    assert relative(out.scores.values, expected.numpy()) < 1e-4
