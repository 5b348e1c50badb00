"""Information flow against loops over heads and tokens with the weights as they are; identities; options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_parts import decomposed, step_rows, widths_of
from slow_routes import edge_rows, flow_maps
from tiny_models import tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
SLOW = ("gpt2", "llama", "gemma2", "t5", "marian")


def attributed(hf, **options):
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="information_flow", **options)
    assert out.verified
    return out


@pytest.mark.parametrize("threshold", [0.0, 0.05])
@pytest.mark.parametrize("family", SLOW)
def test_rollout_equals_loops_over_heads_and_tokens(family, threshold):
    hf = tiny_model(family, dtype=torch.float64)
    out = attributed(hf, threshold=threshold)
    found, _, _ = decomposed(hf, PROMPT, CONTINUATION)
    maps = flow_maps(found, widths_of(hf, PROMPT, CONTINUATION), threshold)
    expected = maps["decoder"][step_rows(hf, PROMPT, CONTINUATION)]
    np.testing.assert_allclose(np.nan_to_num(out.scores.values), expected, atol=1e-6)
    np.testing.assert_allclose(np.nansum(out.scores.values, axis=1), 1, atol=1e-5)
    if hf.config.is_encoder_decoder:
        expected = maps["encoder"][:, : len(PROMPT)]
        np.testing.assert_allclose(out.extras["encoder_self"].values, expected, atol=1e-6)


@pytest.mark.parametrize("family", SLOW)
def test_direct_edges_equal_loops_over_heads_and_tokens(family):
    hf = tiny_model(family, dtype=torch.float64)
    out = attributed(hf, compose="direct")
    found, _, _ = decomposed(hf, PROMPT, CONTINUATION)
    widths = widths_of(hf, PROMPT, CONTINUATION)
    encoder = flow_maps(found, widths, 0.0)["encoder"]
    expected = torch.zeros(len(CONTINUATION), sum(widths)).double()
    for step, row in enumerate(step_rows(hf, PROMPT, CONTINUATION)):
        for keys, _ in (edge_rows(one, row, 0.0) for one in pairs(found)):
            expected[step, -widths[-1] :] += keys[0]
            if len(keys) > 1:
                expected[step] += keys[1] @ encoder
    np.testing.assert_allclose(np.nan_to_num(out.scores.values), expected, atol=1e-6)


def pairs(found):
    """Attention modules of each decoder block."""
    layers = {one.layer for one in found if one.stack == "decoder"}
    return [[one for one in found if (one.stack, one.layer) == ("decoder", layer)] for layer in sorted(layers)]


def test_a_model_of_two_tokens_by_hand():
    # One layer and one head that looks at both tokens alike; values and stream are chosen, so edges can be counted.
    hf = tiny_model(
        "llama", dtype=torch.float64, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, hidden_size=2,
        intermediate_size=4,
    )  # fmt: skip
    hf.requires_grad_(False)
    attention = hf.model.layers[0].self_attn
    attention.q_proj.weight.zero_()
    attention.v_proj.weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
    attention.o_proj.weight.copy_(torch.eye(2))
    norm = hf.model.layers[0].input_layernorm
    norm.weight.fill_(1)
    norm.variance_epsilon = 0.0
    hf.model.embed_tokens.weight[10] = torch.tensor([3.0, 0.0])
    hf.model.embed_tokens.weight[11] = torch.tensor([0.0, -1.0])
    # A norm makes (sqrt 2, 0) and (0, -sqrt 2) of these; half of the values times 4 and 2 is what each key brings.
    root = 2**0.5
    first, second, stream = (2 * root, 0.0), (0.0, -root), (0.0, -1.0)
    total = np.add(np.add(first, second), stream)
    whole = np.abs(total).sum()
    near = [whole - np.abs(total - np.array(part)).sum() for part in (first, second, stream)]
    shares = np.array(near) / sum(near)
    model = whence.load(hf)
    direct = model.attribute([10, 11], [12], method="information_flow", compose="direct")
    np.testing.assert_allclose(direct.scores.values[0], shares[:2], atol=1e-6)
    rollout = model.attribute([10, 11], [12], method="information_flow")
    np.testing.assert_allclose(rollout.scores.values[0], [shares[0], shares[1] + shares[2]], atol=1e-6)
    # 2.83, 1.41 and 1 of 5.24: with a threshold of a fifth the stream's own edge goes.
    assert shares[2] < 0.2 < shares[1]
    cut = model.attribute([10, 11], [12], method="information_flow", threshold=0.2)
    np.testing.assert_allclose(cut.scores.values[0], shares[:2] / shares[:2].sum(), atol=1e-6)
    trace = model.attribute([10, 11], [12], method="flashtrace", hops=0)
    np.testing.assert_array_equal(trace.scores.values, direct.scores.values)


def test_a_span_has_the_mean_of_its_steps():
    model = whence.load(tiny_model("gemma2"))
    for compose in ("rollout", "direct"):
        ask = {"method": "information_flow", "compose": compose}
        steps = np.nan_to_num(model.attribute(PROMPT, CONTINUATION, **ask).scores.values)
        span = model.attribute(PROMPT, CONTINUATION, steps="whole", **ask).scores.values
        np.testing.assert_allclose(np.nan_to_num(span[0]), steps.mean(0), atol=1e-6)


@pytest.mark.parametrize("compose", ["rollout", "direct"])
@pytest.mark.parametrize("family", ["gpt2", "falcon", "marian", "t5"])
def test_a_batch_is_each_alone(family, compose):
    model = whence.load(tiny_model(family))
    prompts, texts = [PROMPT, [30, 8]], [CONTINUATION, [11]]
    ask = {"method": "information_flow", "compose": compose}
    for one, prompt, text in zip(model.attribute(prompts, texts, **ask), prompts, texts, strict=True):
        alone = model.attribute(prompt, text, **ask)
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5)
        for name, scores in alone.extras.items():
            np.testing.assert_allclose(one.extras[name].values, scores.values, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"compose": "flow"}, "'rollout' or 'direct'"), ({"threshold": 1.0}, "from 0 to below 1")],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(whence.InputError, match=message):
        whence.load(tiny_model("gpt2")).attribute(PROMPT, CONTINUATION, method="information_flow", **options)
