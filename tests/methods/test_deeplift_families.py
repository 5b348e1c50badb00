"""DeepLIFT on every dense family, against multipliers propagated by hand through the untraced model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from deeplift_reference import change, deeplift
from tiny_models import FAMILIES, VARIANTS, tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
ROUTED = ("qwen3_moe", "gpt_oss", "qwen3_moe_mixed")
DENSE = tuple(family for family in (*FAMILIES, *VARIANTS) if family not in ROUTED)
OPTIONS = {"method": "deeplift", "baseline": "mean"}


def means(model):
    rows = model.embedding_rows([])
    return [rows[stack]["mean"].double() for stack in rows]


def relative(found, expected):
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    return np.nanmax(np.abs(found - expected)) / np.nanmax(np.abs(expected))


@pytest.mark.parametrize("family", DENSE)
def test_equals_multipliers_propagated_by_hand(family):
    model = whence.load(tiny_model(family, dtype=torch.float64))
    expected = deeplift(model.nn._module, PROMPT, CONTINUATION, target="logprob", baselines=means(model)).numpy()
    out = model.attribute(PROMPT, CONTINUATION, target="logprob", **OPTIONS)
    # Many models compute their norms in float32 whatever the rest is in.
    assert relative(out.scores.values, expected) < 1e-5
    assert out.verified


@pytest.mark.parametrize("family", DENSE)
def test_both_modes_add_up_in_single_precision(family):
    """In forward mode Bloom too, whose nonlinearity has no tangent: with rules it needs none."""
    model = whence.load(tiny_model(family))
    reverse, forward = (
        model.attribute(PROMPT, CONTINUATION, target="logit", mode=mode, **OPTIONS) for mode in ("reverse", "forward")
    )
    assert relative(forward.scores.values, reverse.scores.values) < 1e-5
    assert forward.info["engine"]["mode"] == "forward"
    assert "adjoint" in {one.name for one in forward.checks}
    expected = change(model.nn._module, PROMPT, CONTINUATION, "logit", means(model)).numpy()
    for out in (reverse, forward):
        assert out.verified
        gap = np.abs(np.nansum(out.scores.values.astype(float), axis=1) - expected).max()
        assert gap < 1e-4 * np.abs(expected).max()
