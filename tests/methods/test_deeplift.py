"""DeepLIFT's identities: what it adds up to, what it does not depend on, what it leaves alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import whence
from deeplift_reference import change
from tiny_models import is_encoder_decoder, tiny_model
from whence.models import bundled
from whence.probe import reverse_mode

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
ROUTED = ("qwen3_moe", "gpt_oss", "qwen3_moe_mixed")
SOME = ("gpt2", "llama", "gemma2", "opt", "bloom", "falcon", "mpt", "t5", "bart")


@cache
def load(family, dtype=torch.float32, **options):
    return whence.load(tiny_model(family, dtype=dtype, **options))


def explain(model, **options):
    options = {"method": "deeplift", "target": "logit", "baseline": "mean", **options}
    return model.attribute(PROMPT, CONTINUATION, **options)


def means(model):
    rows = model.embedding_rows([])
    return [rows[stack]["mean"].double() for stack in rows]


def check(out, name="completeness"):
    return {one.name: one for one in out.checks}[name]


def relative(found, expected):
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    return np.nanmax(np.abs(found - expected)) / np.nanmax(np.abs(expected))


def gap(model, target="logit", low=None, **options):
    """How far the scores are from adding up, beside the largest change of a step."""
    expected = change(model.nn._module, PROMPT, CONTINUATION, target, means(model) if low is None else low).numpy()
    scores = explain(model, target=target, **options).scores.values.astype(float)
    return np.abs(np.nansum(scores, axis=1) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("target", ["logit", "logprob", "probability", "entropy"])
def test_scores_add_up_exactly_in_double_precision(target):
    model = load("gpt2", torch.float64)  # which computes nothing in float32
    zeros = [torch.zeros(16, dtype=torch.float64)]
    # Scores are kept in single precision.
    assert gap(model, target) < 1e-6
    assert gap(model, target, zeros, baseline="zero") < 1e-6
    for baseline in ("mean", "zero"):
        assert check(explain(model, target=target, baseline=baseline)).value < 1e-12


def test_scores_add_up_from_the_zero_vector_where_integrated_gradients_do_not():
    model = load("llama", torch.float64)
    options = {"baseline": "zero", "target": "logprob"}
    assert check(explain(model, **options)).value < 1e-6
    assert check(explain(model, method="integrated_gradients", n_steps=50, **options)).value > 1e-2


@pytest.mark.parametrize(
    ("family", "mode"),
    [*((family, "reverse") for family in SOME), ("gpt2", "forward"), ("mpt", "forward"), ("t5", "forward")],
)
def test_batch_of_different_lengths_equals_each_alone(family, mode):
    model = load(family)
    prompts = [[7, 21, 9, 33, 12, 50, 18], [30, 12, 9], [5]]
    continuations = [[17, 8], [40, 11, 19, 23], [60, 61, 9]]
    options = {"method": "deeplift", "target": "logprob", "baseline": "mean", "mode": mode}
    together = model.attribute(prompts, continuations, **options)
    for one, prompt, continuation in zip(together, prompts, continuations, strict=True):
        alone = model.attribute(prompt, continuation, **options)
        assert np.nanmax(np.abs(alone.scores.values - one.scores.values)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen2", "falcon", "falcon_new", "t5", "bart", "gpt_neox"])
def test_fused_attention_has_the_same_rules(family):
    eager, fused = (explain(load(family, attention=kind)) for kind in ("eager", "sdpa"))
    assert relative(fused.scores.values, eager.scores.values) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "falcon", "t5", "bart"])
def test_every_layer_shares_out_the_same_difference(family):
    model = load(family)
    out = explain(model, layer="all")
    expected = np.nansum(explain(model).scores.values, axis=1)
    layers = min(model.architecture.n_layers.values())
    for layer in range(layers):
        np.testing.assert_allclose(np.nansum(out.scores.values[..., layer], axis=1), expected, rtol=1e-4, atol=1e-5)
    assert check(out).passed
    # One pass serves all layers of one stack.
    assert out.info["engine"]["vjps"] == len(CONTINUATION) * (layers if model.encoder_decoder else 1)


def test_a_site_beside_others_has_its_own_share_and_claims_no_more():
    model = load("llama")
    branches = ["blocks.1.attn_out", "blocks.1.mlp_out"]
    out = explain(model, layer=branches)
    assert "completeness" not in {one.name for one in out.checks}
    # The last block's branches and its input are all that the residual stream is made of.
    parts = explain(model, layer=[*branches, "blocks.1.resid_pre"], mode="forward")
    np.testing.assert_allclose(parts.scores.values[..., :2], out.scores.values, rtol=1e-4, atol=1e-5)
    before = explain(model, layer="blocks.1.resid_pre").scores.values
    whole = np.nansum(explain(model, layer="blocks.1.resid_post").scores.values, axis=1)
    np.testing.assert_allclose(np.nansum(before, axis=1), whole, rtol=1e-4)
    assert np.nansum(np.abs(out.scores.values)) > 0.1


@pytest.mark.parametrize("family", ["qwen3", "phi3", "falcon", "mpt", "opt"])
def test_sites_between_operations_with_rules_can_be_asked_for(family):
    for site in ("attn.q", "attn.k", "attn.v", "attn.z", "mlp.pre", "mlp.post", "ln1", "ln2", "resid_mid"):
        model = load(family)
        name = f"blocks.0.{site}"
        if name in model.architecture.sites:
            reverse, forward = (explain(model, layer=name, mode=mode).scores.values for mode in ("reverse", "forward"))
            assert relative(forward, reverse) < 1e-4


def test_a_linear_model_gives_input_times_gradient():
    hf = tiny_model("opt", _remove_final_layer_norm=True)
    with torch.no_grad():
        for layer in hf.model.decoder.layers:
            for last in (layer.self_attn.out_proj, layer.fc2):
                last.weight.zero_()
    model = whence.load(hf)
    exact = explain(model, method="input_x_gradient")
    assert np.abs(explain(model).scores.values - exact.scores.values)[:, 0].max() < 1e-6
    assert relative(explain(model).scores.values, exact.scores.values) < 1e-5


def test_units_and_multipliers():
    model = load("qwen2")
    plain = explain(model).scores.values
    units = explain(model, units=True)
    multipliers = explain(model, multiply_by_inputs=False)
    assert units.scores.names == multipliers.scores.names == ("step", "token", "unit")
    np.testing.assert_allclose(units.scores.values.sum(-1), plain, rtol=1e-4, atol=1e-6)
    assert check(units).passed
    assert "completeness" not in {one.name for one in multipliers.checks}
    rows = model.embedding_rows(PROMPT)["decoder"]
    product = (multipliers.scores.values[:, :5] * (rows["rows"] - rows["mean"]).numpy()).sum(-1)
    np.testing.assert_allclose(product, plain[:, :5], rtol=1e-3, atol=1e-5)


def test_segments_spans_and_what_is_kept():
    model = load("gpt2")
    tokens = explain(model).scores.values
    pieces = explain(model, segments=[[0, 2, 4], [1, 3]]).scores.values
    np.testing.assert_allclose(pieces[:, 0], tokens[:, [0, 2, 4]].sum(1), rtol=1e-4, atol=1e-6)
    span = explain(model, steps=(0, 3)).scores.values
    np.testing.assert_allclose(span[0], np.nansum(tokens, axis=0), rtol=1e-4, atol=1e-6)
    kept = explain(model, keep=[1, 3])
    assert (kept.scores.values[:, [1, 3]] == 0).all()
    assert check(kept).passed
    source = explain(model, sides="source")
    assert np.isnan(source.scores.values[:, 5:]).all()
    assert check(source).passed


@pytest.mark.parametrize("layer", [None, 0])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
@pytest.mark.parametrize("family", ["llama", "opt", "t5"])
def test_several_baselines_give_the_mean_over_them(family, mode, layer):
    model = load(family, torch.float64)
    baselines = ["mean", 11, 12]
    together = explain(model, baseline=baselines, mode=mode, layer=layer, strict=True)
    alone = [explain(model, baseline=one, mode=mode, layer=layer).scores.values for one in baselines]
    assert relative(together.scores.values, np.mean(alone, axis=0)) < 1e-6
    assert relative(alone[0], alone[1]) > 1e-2
    assert together.verified
    assert check(together).value < 1e-6
    assert check(together, "adjoint").passed


def test_several_baselines_of_a_batch_keep_to_their_own_rows():
    """A counterfactual has a reference of its own for every sequence, and its prefix is not compared."""
    model = load("gpt2")
    options = {"method": "deeplift", "target": "logit", "baseline": [11, [5, 6, 7]]}
    prompts, continuations = [[7, 21, 9], [30, 12, 9]], [[17, 8], [40, 11, 19]]
    together = model.attribute(prompts, continuations, **options)
    for one, prompt, continuation in zip(together, prompts, continuations, strict=True):
        alone = model.attribute(prompt, continuation, **options)
        assert np.nanmax(np.abs(alone.scores.values - one.scores.values)) < 1e-5
        assert check(one).passed


def test_nothing_flows_to_the_reference(monkeypatch):
    seen = []
    contract = reverse_mode.contract

    def spied(state, group, grads, moves, examples, *rest):
        seen.append((grads, len(examples)))
        return contract(state, group, grads, moves, examples, *rest)

    monkeypatch.setattr(reverse_mode, "contract", spied)
    for family in ("gpt2", "gemma2", "falcon", "t5"):
        explain(load(family), mode="reverse")
    assert len(seen) == 4
    for grads, count in seen:
        for grad in grads.values():
            assert grad[:, :count].abs().max() > 0
            assert grad[:, count:].abs().max() == 0


@pytest.mark.parametrize("family", ["gpt2", "falcon", "t5"])
def test_the_model_is_unchanged(family):
    hf = tiny_model(family)
    ids = {"input_ids": torch.tensor([PROMPT])}
    ids |= {"decoder_input_ids": torch.tensor([[1]])} if is_encoder_decoder(family) else {}
    with torch.no_grad():
        before = hf(**ids, use_cache=False).logits
    model = whence.load(hf)
    explain(model)
    with torch.no_grad():
        assert torch.equal(model.nn._module(**ids, use_cache=False).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())


@pytest.mark.parametrize("family", ROUTED)
def test_a_change_of_experts_is_said(family):
    out = explain(load(family))
    assert not check(out).passed
    assert not out.verified
    with pytest.raises(whence.CheckFailed, match="completeness"):
        explain(load(family), strict=True)


def test_half_precision():
    out = explain(load("llama", torch.bfloat16))
    exact = explain(load("llama")).scores.values
    assert check(out).passed
    assert np.nanmax(np.abs(out.scores.values - exact)) < 0.2 * np.nanmax(np.abs(exact))


@pytest.mark.parametrize("name", bundled.NAMES)
def test_trained_models(name):
    model = whence.load(f"whence/{name}")
    example = next(iter(bundled.examples(name, 1, seed=5)))
    for target in ("probability", "logprob"):
        out = model.attribute(example.prompt, example.continuation, method="deeplift", target=target)
        assert out.verified
        assert check(out).value < 1e-5


def test_cost_is_what_the_record_says():
    model = load("gpt2")
    out = explain(model, mode="reverse")
    # Both ends once without rules, and once beside each other with them.
    assert (out.info["engine"]["rows"], out.info["engine"]["vjps"]) == (4, len(CONTINUATION))
    forward = explain(model, mode="forward", sides="source")
    assert forward.info["engine"]["jvps"] == len(PROMPT)
    assert model.estimate(PROMPT, CONTINUATION, method="deeplift").derivatives == len(CONTINUATION)


def test_options_out_of_range_are_refused():
    with pytest.raises(whence.InputError, match="implied"):
        whence.DeepLift(units=True, multiply_by_inputs=False)
    with pytest.raises(whence.UnsupportedError, match="finite differences cannot follow"):
        explain(load("gpt2"), derivative="finite")
    with pytest.raises(whence.UnsupportedError, match="needs the whole gradient"):
        explain(load("gpt2"), units=True, mode="forward")
    hf = tiny_model("gpt2")
    hf.transformer.ln_f = torch.nn.Tanh()
    with pytest.raises(whence.UnsupportedError, match=r"the norm transformer\.ln_f does not say"):
        explain(whence.load(hf))
