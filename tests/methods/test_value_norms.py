"""Value norms against loops over tokens with the weights as they are; identities; options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_parts import decomposed, step_rows
from tiny_models import tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
SLOW = ("gpt2", "llama", "gemma2", "t5", "marian")


def expected_norms(one, rows, *, level, block):
    """Norms for some rows of one module: [row, key(, head)]."""
    found = []
    for i in rows:
        terms = one.summed(i) if block == "resln" else one.added(i)
        residual = terms.residual if block == "resln" else one.stream[i]
        row = []
        for j in range(one.pattern.shape[2]):
            vectors = terms.parts[:, j]
            if level == "head":
                row.append(vectors.norm(dim=-1))
                continue
            own = one.kind == "attn" and j == i and block != "attn"
            row.append((vectors.sum(0) + (residual if own else 0)).norm())
        found.append(torch.stack(row))
    return torch.stack(found)


ASKED = ({}, {"level": "head"}, {"block": "res"})


@pytest.mark.parametrize(
    ("family", "options"),
    [*((family, options) for family in SLOW for options in ASKED), ("marian", {"block": "resln"})],
)
def test_norms_equal_loops_over_tokens(family, options):
    hf = tiny_model(family, dtype=torch.float64)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="value_norms", **options)
    assert out.verified
    options = {"level": "layer", "block": "attn", **options}
    found, _, _ = decomposed(hf, PROMPT, CONTINUATION)
    rows = step_rows(hf, PROMPT, CONTINUATION)
    for one in found:
        if one.stack == "encoder":
            values = out.extras["encoder_self"].values[:, :, one.layer]
            chosen = range(len(PROMPT))
        else:
            side = out.source if one.kind == "cross_attn" else out.prefix
            side = out.scores if not hf.config.is_encoder_decoder else side
            values, chosen = np.nan_to_num(side.values[:, :, one.layer]), rows
        np.testing.assert_allclose(values, expected_norms(one, chosen, **options), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_row_divided_by_its_sum_sums_to_one_for_every_kind_of_attention(family):
    model = whence.load(tiny_model(family))
    plain = model.attribute(PROMPT, CONTINUATION, method="value_norms")
    shares = model.attribute(PROMPT, CONTINUATION, method="value_norms", normalize=True)
    sides = ("source", "prefix") if model.encoder_decoder else ("scores",)
    for side in sides:
        whole, part = getattr(plain, side).values, getattr(shares, side).values
        np.testing.assert_allclose(np.nansum(part, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(part, whole / np.nansum(whole, axis=1, keepdims=True), atol=1e-5)


def test_one_key_has_the_length_of_its_projected_value():
    hf = tiny_model("llama", num_hidden_layers=1)
    out = whence.load(hf).attribute([7], [17], method="value_norms", level="head")
    block = hf.model.layers[0]
    with torch.no_grad():
        value = block.self_attn.v_proj(block.input_layernorm(hf.model.embed_tokens.weight[7]))
        for head in range(4):
            part = value.view(2, 4)[head // 2] @ block.self_attn.o_proj.weight.T[head * 4 : head * 4 + 4]
            assert out.scores.values[0, 0, 0, head] == pytest.approx(float(part.norm()), rel=1e-5)


def test_a_span_has_the_mean_of_its_steps_and_a_segment_the_sum_of_its_tokens():
    model = whence.load(tiny_model("t5"))
    steps = np.nan_to_num(model.attribute(PROMPT, CONTINUATION, method="value_norms").scores.values)
    span = model.attribute(PROMPT, CONTINUATION, method="value_norms", steps="whole").scores.values
    np.testing.assert_allclose(np.nan_to_num(span[0]), steps.mean(0), atol=1e-5)
    segments = [[0, 1, 2], [3, 4], [5], [6], [7]]
    joined = model.attribute(PROMPT, CONTINUATION, method="value_norms", segments=segments).scores.values
    np.testing.assert_allclose(joined[:, 0], steps[:, :3].sum(1), atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "t5", "marian"])
def test_extras_and_scores_of_a_batch_are_those_of_each_alone(family):
    model = whence.load(tiny_model(family))
    prompts, texts = [PROMPT, [30, 8]], [CONTINUATION, [11]]
    both = model.attribute(prompts, texts, method="value_norms", level="head")
    for one, prompt, text in zip(both, prompts, texts, strict=True):
        alone = model.attribute(prompt, text, method="value_norms", level="head")
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5)
        for name, scores in alone.extras.items():
            np.testing.assert_allclose(one.extras[name].values, scores.values, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": "heads"}, whence.InputError, "'layer' or 'head'"),
        ({"block": "mlp"}, whence.InputError, "'attn', 'res' or 'resln'"),
        ({"level": "head", "block": "res"}, whence.InputError, "belongs to no head"),
        ({"block": "resln"}, whence.UnsupportedError, "norms after the sums"),
        ({"target": "logit"}, whence.UnsupportedError, "explains no such number"),
    ],
)
def test_options_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=message):
        whence.load(tiny_model("gpt2")).attribute(PROMPT, CONTINUATION, method="value_norms", **options)
