"""ALTI and ALTI+ against loops over tokens with the weights as they are; identities; options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_parts import alti_maps, alti_rows, decomposed, step_rows, widths_of
from tiny_models import tiny_model
from whence.methods.internals import proximity

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
SLOW = ("gpt2", "llama", "gemma2", "t5", "marian")


def attributed(hf, **options):
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="alti", **options)
    assert out.verified
    assert all(check.value == 0 for check in out.checks if check.name == "flat-rows")
    return out


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("family", SLOW)
def test_maps_equal_loops_over_tokens(family, norm):
    hf = tiny_model(family, dtype=torch.float64)
    out = attributed(hf, norm=norm, all_layers=True)
    found, _, _ = decomposed(hf, PROMPT, CONTINUATION)
    maps = alti_maps(found, widths_of(hf, PROMPT, CONTINUATION), 1 if norm == "l1" else 2)
    closing = "cross_attn" if hf.config.is_encoder_decoder else "attn"
    rows = step_rows(hf, PROMPT, CONTINUATION)
    layers = out.scores.shape[2]
    for layer in range(layers):
        expected = maps["decoder", closing, layer][rows]
        np.testing.assert_allclose(np.nan_to_num(out.scores.values[..., layer]), expected, atol=1e-6)
    if hf.config.is_encoder_decoder:
        expected = maps["encoder", "end", 0][:, : len(PROMPT)]
        np.testing.assert_allclose(out.extras["encoder_self"].values[..., -1], expected, atol=1e-6)
    last = attributed(hf, norm=norm)
    np.testing.assert_array_equal(last.scores.values, out.scores.values[..., -1])


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_without_rollout_the_rows_of_every_layer(family):
    hf = tiny_model(family, dtype=torch.float64)
    out = attributed(hf, rollout=False)
    found, _, _ = decomposed(hf, PROMPT, CONTINUATION)
    rows = step_rows(hf, PROMPT, CONTINUATION)
    inside = {one.layer: alti_rows(one)[0] for one in found if (one.stack, one.kind) == ("decoder", "attn")}
    crossing = {one.layer: alti_rows(one) for one in found if one.kind == "cross_attn"}
    for layer, keys in inside.items():
        expected = keys[rows]
        if crossing:
            source, rest = crossing[layer]
            expected = torch.cat([source[rows], rest[rows, None] * expected], dim=1)
        np.testing.assert_allclose(np.nan_to_num(out.scores.values[..., layer]), expected, atol=1e-6)


def test_shares_sum_to_one_and_a_span_has_the_mean_of_its_steps():
    model = whence.load(tiny_model("gemma2"))
    steps = model.attribute(PROMPT, CONTINUATION, method="alti").scores.values
    np.testing.assert_allclose(np.nansum(steps, axis=1), 1, atol=1e-5)
    span = model.attribute(PROMPT, CONTINUATION, method="alti", steps=(0, 2)).scores.values
    np.testing.assert_allclose(np.nan_to_num(span[0]), np.nan_to_num(steps[:2]).mean(0), atol=1e-6)


def test_segments_have_the_sum_of_their_tokens():
    model = whence.load(tiny_model("llama"))
    tokens = model.attribute(PROMPT, CONTINUATION, method="alti").scores.values
    segments = [[0, 2], [1], [3, 4], [5], [6]]
    joined = model.attribute(PROMPT, CONTINUATION, method="alti", segments=segments).scores.values
    np.testing.assert_allclose(joined[:, 0], tokens[:, [0, 2]].sum(1), atol=1e-6)
    np.testing.assert_allclose(joined[:, 2], tokens[:, [3, 4]].sum(1), atol=1e-6)


def test_a_position_that_looks_at_nothing_is_all_its_own():
    hf = tiny_model("llama")
    for block in hf.model.layers:
        block.self_attn.o_proj.weight.data.zero_()
    out = attributed(hf)
    rows = step_rows(hf, PROMPT, CONTINUATION)
    np.testing.assert_array_equal(np.nan_to_num(out.scores.values), np.eye(out.scores.shape[1])[rows])


def test_equal_vectors_from_all_tokens_have_equal_shares():
    # One layer, the same value everywhere, attention that cannot tell keys apart, and nothing in the stream itself.
    hf = tiny_model("llama", num_hidden_layers=1)
    attention = hf.model.layers[0].self_attn
    attention.q_proj.weight.data.zero_()
    hf.model.embed_tokens.weight.data[:] = 1e-9 * torch.ones_like(hf.model.embed_tokens.weight)
    hf.model.layers[0].input_layernorm.variance_epsilon = 1e-20
    out = attributed(hf)
    for step, row in enumerate(step_rows(hf, PROMPT, CONTINUATION)):
        np.testing.assert_allclose(out.scores.values[step, : row + 1], 1 / (row + 1), atol=1e-4)


def test_a_stream_without_anything_near_it_keeps_itself_and_says_so():
    hf = tiny_model("llama", num_hidden_layers=1)
    hf.model.embed_tokens.weight.data.zero_()
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="alti")
    assert {check.name: check.value for check in out.checks}["flat-rows"] == out.scores.shape[1]
    rows = step_rows(hf, PROMPT, CONTINUATION)
    np.testing.assert_array_equal(np.nan_to_num(out.scores.values), np.eye(out.scores.shape[1])[rows])


@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_extras_and_scores_of_a_batch_are_those_of_each_alone(family):
    model = whence.load(tiny_model(family))
    prompts, texts = [PROMPT, [30, 8]], [CONTINUATION, [11]]
    both = model.attribute(prompts, texts, method="alti", all_layers=True)
    for one, prompt, text in zip(both, prompts, texts, strict=True):
        alone = model.attribute(prompt, text, method="alti", all_layers=True)
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5)
        for name, scores in alone.extras.items():
            np.testing.assert_allclose(one.extras[name].values, scores.values, atol=1e-5)
        assert [(c.name, c.passed) for c in one.checks] == [(c.name, c.passed) for c in alone.checks]


@pytest.mark.parametrize("method", ["alti", "information_flow", "value_norms"])
def test_results_do_not_depend_on_how_rows_are_chunked(method, monkeypatch):
    model = whence.load(tiny_model("t5"))
    whole = model.attribute(PROMPT, CONTINUATION, method=method).scores.values
    monkeypatch.setattr(proximity, "_CELLS", 200)
    np.testing.assert_allclose(model.attribute(PROMPT, CONTINUATION, method=method).scores.values, whole, atol=1e-6)


def test_fused_attention_gives_the_same():
    eager, fused = (
        whence.load(tiny_model("llama", attention=kind)).attribute(PROMPT, CONTINUATION, method="alti").scores.values
        for kind in ("eager", "sdpa")
    )
    np.testing.assert_allclose(eager, fused, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"norm": "l3"}, "'l1' or 'l2'"), ({"rollout": False, "all_layers": True}, "implied by rollout=False")],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(whence.InputError, match=message):
        whence.load(tiny_model("gpt2")).attribute(PROMPT, CONTINUATION, method="alti", **options)


def test_a_target_is_refused():
    with pytest.raises(whence.UnsupportedError, match="explains no such number"):
        whence.load(tiny_model("gpt2")).attribute(PROMPT, CONTINUATION, method="alti", target="logit")
