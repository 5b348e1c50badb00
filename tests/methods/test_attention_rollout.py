"""Attention rollout against products of the weights that transformers reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from tiny_models import FAMILIES, VARIANTS, tiny_model
from untraced import attentions, text_inputs
from whence.methods.internals.rolling import composed

ALL = (*FAMILIES, *VARIANTS)
PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def joined(weights, how="mean"):
    """One pattern [layer, query, key] for all heads."""
    weights = weights.double()
    if how == "mean":
        return weights.mean(1)
    weights = weights.amax(1) if how == "max" else weights.amin(1)
    return weights / weights.sum(-1, keepdim=True)


def rollout(hf, *, residual=0.5, cross=0.5, how="mean"):
    """Shares [layer, position, token] of all positions of the decoder, and [position, token] of the encoder.

    By the definition: every position is a sum over the paths that lead to it, followed one position at a time.
    """
    inputs, _ = text_inputs(hf, PROMPT, CONTINUATION)
    found = attentions(hf, inputs)

    def mixed(pattern, query, states):
        return residual * states[query] + (1 - residual) * sum(
            pattern[query, key] * states[key] for key in range(len(states))
        )

    encoder = None
    if "encoder" in found:
        encoder = torch.eye(found["encoder"].shape[-1]).double()
        for pattern in joined(found["encoder"], how):
            encoder = torch.stack([mixed(pattern, query, encoder) for query in range(len(encoder))])
    own = joined(found["decoder"], how)
    sources = 0 if encoder is None else len(encoder)
    states = torch.cat([torch.zeros(own.shape[1], sources), torch.eye(own.shape[1])], dim=1).double()
    layers = []
    for layer, pattern in enumerate(own):
        above = torch.stack([mixed(pattern, query, states) for query in range(len(states))])
        if encoder is not None:
            above = (1 - cross) * above
            above[:, :sources] += cross * joined(found["cross"], how)[layer] @ encoder
        states = above
        layers.append(states)
    return torch.stack(layers), encoder


def seen(expected, hf):
    """Rows of the steps, NaN where a step cannot look."""
    _, query = text_inputs(hf, PROMPT, CONTINUATION)
    rows = expected[query].clone()
    first = rows.shape[1] - (len(CONTINUATION) if hf.config.is_encoder_decoder else rows.shape[1])
    for row, place in zip(rows, query, strict=True):
        row[first + place + 1 :] = torch.nan
    return rows.numpy()


@pytest.mark.parametrize("family", ALL)
def test_scores_are_the_product_of_the_layers(family):
    hf = tiny_model(family)
    layers, encoder = rollout(hf)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="attention_rollout")
    assert out.scores.names == ("step", "token")
    np.testing.assert_allclose(out.scores.values, seen(layers[-1], hf), rtol=0, atol=1e-6)
    assert out.verified
    if family != "gpt_oss":
        np.testing.assert_allclose(np.nansum(out.scores.values, 1), 1, atol=1e-5)
    if encoder is not None:
        np.testing.assert_allclose(out.extras["encoder_self"].values, encoder.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_oss", "t5", "marian"])
@pytest.mark.parametrize(
    "options", [{"residual": 0.2, "how": "max"}, {"residual": 0.0, "how": "min"}, {"cross": 0.9}, {"cross": 0.0}]
)
def test_options_are_those_of_the_formula(family, options):
    hf = tiny_model(family)
    layers, encoder = rollout(hf, **options)
    given = {{"how": "head_reduce"}.get(name, name): value for name, value in options.items()}
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="attention_rollout", all_layers=True, **given)
    assert out.scores.names == ("step", "token", "layer")
    for layer, expected in enumerate(layers):
        np.testing.assert_allclose(out.scores.values[:, :, layer], seen(expected, hf), rtol=0, atol=1e-6)
    assert out.verified
    if encoder is not None:
        np.testing.assert_allclose(out.extras["encoder_self"].values[:, :, -1], encoder.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_residual_stream_alone_leads_to_the_token_itself(family):
    model = whence.load(tiny_model(family))
    out = model.attribute(PROMPT, CONTINUATION, method="attention_rollout", residual=1.0, cross=0.0)
    own = np.nan_to_num(out.scores.values)
    first = len(PROMPT) if family == "t5" else len(PROMPT) - 1
    expected = np.zeros_like(own)
    expected[range(3), range(first, first + 3)] = 1
    np.testing.assert_array_equal(own, expected)


def test_a_sink_is_reported_as_mass_that_is_missing():
    hf = tiny_model("gpt_oss")
    model = whence.load(hf)
    plain = model.attribute(PROMPT, CONTINUATION, method="attention_rollout")
    missing = {check.name: check for check in plain.checks}["missing_mass"]
    assert missing.passed is None
    assert missing.value == pytest.approx(1 - np.nansum(plain.scores.values, 1).min(), rel=1e-4)
    most = model.attribute(PROMPT, CONTINUATION, method="attention_rollout", head_reduce="max")
    assert {check.name: check.passed for check in most.checks} == {"row sums": True}


def test_a_product_by_hand():
    low, high = torch.tensor([[1.0, 0.0], [0.25, 0.75]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(composed(high, composed(low, None)), torch.tensor([[1.0, 0.0], [0.625, 0.375]]))
    source = torch.tensor([[0.2], [0.4]])
    once = composed(0.5 * low, None, source)
    torch.testing.assert_close(once, torch.tensor([[0.2, 0.5, 0.0], [0.4, 0.125, 0.375]]))
    twice = composed(0.5 * high, once, source)
    torch.testing.assert_close(twice, torch.tensor([[0.3, 0.25, 0.0], [0.55, 0.15625, 0.09375]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": 1.5}, "residual is a share from 0 to 1, not 1.5"),
        ({"cross": -0.1}, "cross is a share from 0 to 1"),
        ({"head_reduce": "sum"}, "unknown head_reduce of attention_rollout: 'sum'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.AttentionRollout(**options)
