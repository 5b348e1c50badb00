"""What holds for derivatives on every family: both modes agree, batches equal singles, layers complete."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from tiny_models import DECODER_ONLY, ENCODER_DECODER, FAMILIES, VARIANTS, tiny_model
from whence.probe.batch import collate, force
from whence.probe.measuring import measure_batch
from whence.step_functions import STEP_FUNCTIONS
from whence.text.encoded import encode_ids

ALL = (*FAMILIES, *VARIANTS)
PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40, 11]
# Families with an operation that PyTorch gives no tangent for; whence falls back to reverse mode there.
ROUTED = frozenset({"qwen3_moe", "gpt_oss"})
WITHOUT_TANGENT = frozenset({"bloom", "bloom_post_residual"})


@pytest.fixture(params=ALL)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return whence.load(tiny_model(family))


def agree(a, b, tolerance):
    """NaN in the same places, and equal to a tolerance relative to the largest number.

    Bloom's gradients are a thousand times smaller than its logits, so rounding has a floor of its own.
    """
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    assert np.nanmax(np.abs(a - b)) <= tolerance * np.nanmax(np.abs(a)) + 1e-6


def test_forward_mode_equals_reverse_mode(model, family):
    options = {"target": "logprob", "method": "input_x_gradient", "sides": "source"}
    reverse = model.attribute(PROMPT, CONTINUATION, mode="reverse", **options)
    if family in WITHOUT_TANGENT:
        with pytest.raises(whence.UnsupportedError, match="mode='reverse'"):
            model.attribute(PROMPT, CONTINUATION, mode="forward", **options)
        return
    forward = model.attribute(PROMPT, CONTINUATION, mode="forward", **options)
    assert forward.info["engine"]["mode"] == "forward"
    assert forward.info["engine"]["jvps"] > 0
    agree(reverse.scores.values, forward.scores.values, 1e-5)
    assert "adjoint" in {check.name for check in forward.checks}
    assert forward.verified


def test_forward_mode_of_a_path_equals_reverse_mode(model, family):
    options = {"target": "logprob", "method": "integrated_gradients", "n_steps": 4, "segments": [[0, 1, 2], [3, 4]]}
    reverse = model.attribute(PROMPT, CONTINUATION, mode="reverse", **options)
    auto = model.attribute(PROMPT, CONTINUATION, sides="source", **options)
    both = reverse.scores.values[:, :2]
    assert auto.info["engine"]["mode"] == ("reverse" if family in WITHOUT_TANGENT else "forward")
    # The path differs (the prefix keeps its value), so only shape and verification are comparable here.
    assert auto.scores.values[:, :2].shape == both.shape
    forward = model.attribute(PROMPT, CONTINUATION, **options)
    agree(reverse.scores.values, forward.scores.values, 1e-5)


def test_batch_of_different_lengths_equals_each_alone(model):
    prompts = [[7, 21, 9, 33, 12, 50, 18], [30, 12, 9], [5]]
    continuations = [[17, 8], [40, 11, 19, 23], [60, 61, 9]]
    for method, options in (("input_x_gradient", {}), ("integrated_gradients", {"n_steps": 3})):
        together = model.attribute(prompts, continuations, method=method, target="logprob", **options)
        for one, prompt, continuation in zip(together, prompts, continuations, strict=True):
            alone = model.attribute(prompt, continuation, method=method, target="logprob", **options)
            agree(alone.scores.values, one.scores.values, 1e-5)
            assert [t.id for t in one.steps] == continuation
            assert [t.id for t in one.tokens] == [t.id for t in alone.tokens]


def test_target_equals_the_untraced_model(model):
    """Marian and Pegasus scale embeddings inside the decoder: this is where others are silently wrong."""
    hf = model.nn._module
    out = model.attribute(PROMPT, CONTINUATION, step_scores=["logit", "probability", "logprob", "entropy"])
    if model.encoder_decoder:
        ids = {
            "input_ids": torch.tensor([PROMPT]),
            "decoder_input_ids": torch.tensor([[hf.config.decoder_start_token_id, *CONTINUATION[:-1]]]),
        }
        first = 0
    else:
        ids = {"input_ids": torch.tensor([[*PROMPT, *CONTINUATION[:-1]]])}
        first = len(PROMPT) - 1
    with torch.no_grad():
        logits = hf(**ids, use_cache=False).logits[0, first:].double()
    rows = torch.arange(len(CONTINUATION))
    logp = logits.log_softmax(-1)
    expected = {
        "logit": logits[rows, CONTINUATION],
        "logprob": logp[rows, CONTINUATION],
        "probability": logp[rows, CONTINUATION].exp(),
        "entropy": -(logp.exp() * logp).sum(-1),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(out.step_scores[name], values.numpy(), rtol=1e-5, atol=1e-5)


def test_integrated_gradients_complete_at_every_block(model):
    """Per layer the scores sum to f(x) - f(x with the site at its reference): never zeros."""
    # Routed experts make the target jump where the choice of experts changes, and no gradient sees a jump.
    exact = model.config.model_type not in ROUTED
    out = model.attribute(
        PROMPT, CONTINUATION, method="integrated_gradients", n_steps=64, layer="all", target="logit", baseline="mean"
    )
    layers = min(model.architecture.n_layers.values())
    assert out.scores.names == ("step", "token", "layer")
    assert out.scores.shape == (4, len(out.tokens), layers)
    assert (np.nansum(np.abs(out.scores.values), axis=(0, 1)) > 0).all()
    check = {one.name: one for one in out.checks}["completeness"]
    assert check.passed or not exact


def test_one_backward_gives_every_layer(model):
    several = model.attribute(PROMPT, CONTINUATION, method="saliency", layer="all")
    count = min(model.architecture.n_layers.values())
    for layer in range(count):
        alone = model.attribute(PROMPT, CONTINUATION, method="saliency", layer=layer)
        agree(alone.scores.values, several.scores.values[..., layer], 1e-5)
    # Two stacks are two inputs at every layer, so there each layer has a pass of its own.
    assert several.info["engine"]["vjps"] == len(CONTINUATION) * (count if model.encoder_decoder else 1)


def test_the_model_is_unchanged_by_an_attribution(model):
    hf = model.nn._module
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    names = [name for name, _ in hf.named_modules()]
    grads = [parameter.requires_grad for parameter in hf.parameters()]
    ids = torch.tensor([PROMPT])
    extra = {"decoder_input_ids": torch.tensor([[1]])} if model.encoder_decoder else {}
    with torch.no_grad():
        clean = hf(input_ids=ids, use_cache=False, **extra).logits
    model.attribute(PROMPT, CONTINUATION, method="integrated_gradients", n_steps=3, layer=0)

    def broken(inputs):
        raise RuntimeError("in the middle")

    function = STEP_FUNCTIONS["logit"]
    bad = type(function)("bad", broken, "")
    with pytest.raises(RuntimeError, match="in the middle"):
        model.attribute(PROMPT, CONTINUATION, target=bad)
    with torch.no_grad():
        after = hf(input_ids=ids, use_cache=False, **extra).logits
    assert torch.equal(clean, after)
    assert [name for name, _ in hf.named_modules()] == names
    assert [parameter.requires_grad for parameter in hf.parameters()] == grads
    assert not hf.training
    assert all(torch.equal(value, before[name]) for name, value in hf.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())


@pytest.mark.parametrize("family", sorted(ROUTED))
def test_routing_alone_keeps_mixtures_from_completeness(family):
    """With every expert taken there is no choice to change, and the same path completes."""
    chosen = tiny_model(family).config
    for name in ("num_experts_per_tok", "experts_per_token"):
        if hasattr(chosen, name):
            setattr(chosen, name, getattr(chosen, "num_experts", None) or chosen.num_local_experts)
    torch.manual_seed(0)
    hf = type(tiny_model(family))(chosen)
    for parameter in hf.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    out = whence.load(hf).attribute(
        PROMPT, CONTINUATION, method="integrated_gradients", n_steps=64, target="logit", baseline="mean"
    )
    assert {one.name: one for one in out.checks}["completeness"].passed


@pytest.mark.parametrize("family", ["gpt2", "bloom", "mpt", "t5", "marian"])
def test_padding_stands_where_the_positions_need_it(family):
    model = whence.load(tiny_model(family))
    start = 1 if model.encoder_decoder else None
    texts = [force(encode_ids(None, prompt), encode_ids(None, [4, 5]), start, None) for prompt in ([9, 8, 7], [6])]
    batch = collate(texts, pad=0, accepts=model.accepts, dtype=torch.float32)
    mask = batch.inputs["attention_mask"]
    left = family in DECODER_ONLY
    assert mask.tolist() == ([[1, 1, 1, 1], [0, 0, 1, 1]] if left else [[1, 1, 1], [1, 0, 0]])
    if "position_ids" in batch.inputs:
        assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]
    if family in ENCODER_DECODER:
        assert batch.inputs["decoder_input_ids"].tolist() == [[1, 4], [1, 4]]
    values = measure_batch(model, batch, [STEP_FUNCTIONS["logprob"]])[0]
    assert values.shape == (2, 2)


def test_the_adjoint_check_notices_a_tangent_that_is_lost(monkeypatch):
    """An operation that drops part of a tangent gives plausible numbers; comparing both modes finds it."""
    from whence.probe import forward_mode

    model = whence.load(tiny_model("llama"))
    options = {"mode": "forward", "target": "logit"}
    assert model.attribute(PROMPT, CONTINUATION, **options).verified
    whole = forward_mode.tangents

    def losing(*arguments):
        value, tangent = whole(*arguments)
        return value, 0.9 * tangent

    monkeypatch.setattr(forward_mode, "tangents", losing)
    out = model.attribute(PROMPT, CONTINUATION, **options)
    assert [check.name for check in out.checks if check.passed is False] == ["adjoint"]


def test_the_no_op_check_notices_a_site_that_is_written_wrongly(monkeypatch):
    from whence.probe import rows

    model = whence.load(tiny_model("llama"))
    write = rows.write_site
    monkeypatch.setattr(rows, "write_site", lambda nn, spec, value: write(nn, spec, value * 1.01))
    out = model.attribute(PROMPT, CONTINUATION, target="logit", mode="reverse")
    assert "no-op" in [check.name for check in out.checks if check.passed is False]
