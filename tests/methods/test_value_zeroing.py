"""Value zeroing against one run per layer and token of the untraced model, with the value set to zero by a hook."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from tiny_models import FAMILIES, VARIANTS, tiny_model
from untraced import attentions, blocks, output_of, projection, text_inputs, tokens_pushed, value_edit

ALL = (*FAMILIES, *VARIANTS)
PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def cosine(u, v):
    return 1 - torch.cosine_similarity(u.double(), v.double(), dim=-1)


def euclidean(u, v):
    return (u - v).norm(dim=-1)


def relative(u, v):
    return (u - v).norm(dim=-1) / u.norm(dim=-1)


def without(keys, heads=None):
    """An edit of values [batch, key, kv_head, unit] that sets those of some keys to zero."""

    def edit(values):
        values = values.clone()
        for key in keys:
            values[:, key, slice(None) if heads is None else heads] = 0
        return values

    return edit


def moved(hf, stack, family, removed, distance=cosine, heads=None):
    """Distances [layer, position, removed], each from a run of its own in which one layer loses some keys."""
    inputs, _ = text_inputs(hf, PROMPT, CONTINUATION)
    layers = []
    for block in blocks(hf, stack):
        clean = output_of(hf, inputs, block)
        columns = []
        for keys in removed:
            changed = output_of(hf, inputs, block, [value_edit(hf, block, family, without(keys, heads))])
            columns.append(distance(clean, changed))
        layers.append(torch.stack(columns, dim=-1))
    return torch.stack(layers)


def loops(hf, groups=None, **options):
    """Scores [step, feature, layer] before normalisation; 0 where a step cannot look."""
    _, query = text_inputs(hf, PROMPT, CONTINUATION)
    sources = len(PROMPT) if hf.config.is_encoder_decoder else 0
    width = sources + max(query) + 1
    groups = groups or [[token] for token in range(width)]
    parts = []
    for group in groups:
        if group[0] < sources:
            parts.append(moved(hf, "decoder", "cross", [group], **options))
        else:
            parts.append(moved(hf, "decoder", "decoder", [[token - sources for token in group]], **options))
    return torch.cat(parts, dim=-1)[:, query].permute(1, 2, 0)


def shares(scores, dim=1):
    return scores / scores.sum(dim, keepdim=True)


def compared(out, expected, atol=1e-6):
    """Scores are those expected where a step can look; elsewhere nothing was expected."""
    found = out.scores.values
    np.testing.assert_allclose(np.nan_to_num(found), expected.numpy(), rtol=1e-4, atol=atol)
    assert (expected.numpy()[np.isnan(found)] < 1e-12).all()
    assert np.isnan(found).any()
    assert out.verified


@pytest.mark.parametrize("family", ALL)
def test_scores_are_those_of_loops_over_layers_and_tokens(family):
    hf = tiny_model(family, torch.float64)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="value_zeroing")
    assert out.scores.names == ("step", "token", "layer")
    compared(out, shares(loops(hf)))
    assert np.nanstd(out.scores.values) > 0.05, "degenerate: every key moves as much"
    np.testing.assert_allclose(np.nansum(out.scores.values, 1), 1, atol=1e-5)
    if hf.config.is_encoder_decoder:
        inside = moved(hf, "encoder", "encoder", [[token] for token in range(len(PROMPT))])
        expected = shares(inside, 2).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(out.extras["encoder_self"].values, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "falcon", "opt", "gpt_neox", "t5", "marian"])
def test_fused_attention_gives_the_same_scores(family):
    eager, fused = (
        whence.load(tiny_model(family, attention=kind)).attribute(PROMPT, CONTINUATION, method="value_zeroing")
        for kind in ("eager", "sdpa")
    )
    np.testing.assert_allclose(fused.scores.values, eager.scores.values, rtol=1e-3, atol=1e-5)
    assert fused.verified
    for name, scores in eager.extras.items():
        np.testing.assert_allclose(fused.extras[name].values, scores.values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bart"])
@pytest.mark.parametrize("metric", [cosine, euclidean, relative], ids=lambda metric: metric.__name__)
def test_metrics_are_distances_of_states(family, metric):
    hf = tiny_model(family, torch.float64)
    model = whence.load(hf)
    options = {"method": "value_zeroing", "metric": metric.__name__}
    expected = loops(hf, distance=metric)
    compared(model.attribute(PROMPT, CONTINUATION, normalize=False, **options), expected)
    compared(model.attribute(PROMPT, CONTINUATION, **options), shares(expected))
    level = 1.001 * float(expected.median())
    above = expected * (expected > level)
    out = model.attribute(PROMPT, CONTINUATION, normalize=False, threshold=level, **options)
    np.testing.assert_allclose(np.nan_to_num(out.scores.values), above.numpy(), rtol=1e-4, atol=1e-6)


def test_small_cosine_distances_do_not_cancel():
    from whence.probe.zero import distance

    clean = torch.tensor([[[3.0, 4.0]]])
    for size in (1e-2, 1e-4, 1e-6):
        other = clean + size * torch.tensor([[[-4.0, 3.0]]]) / 5
        assert distance(clean, other, "cosine").item() == pytest.approx((size / 5) ** 2 / 2, rel=2e-1)
    assert distance(clean, 2 * clean, "cosine").item() == 0


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_the_tokens_of_a_segment_go_together(family):
    hf = tiny_model(family, torch.float64)
    model = whence.load(hf)
    count = 8 if family == "t5" else 7
    groups = [[0, 1], [2, 4], [3], *[[k] for k in range(5, count)]]
    options = {"method": "value_zeroing", "normalize": False}
    out = model.attribute(PROMPT, CONTINUATION, segments=groups[:3], **options)
    compared(out, loops(hf, groups))
    each = model.attribute(PROMPT, CONTINUATION, **options).scores.values
    assert np.abs(out.scores.values[:, 0] - each[:, :2].sum(1)).max() > 1e-3, "a sum would do"
    if family == "t5":
        inside = out.extras["encoder_self"].values
        assert np.isnan(inside[:, [0, 1, 2, 4]]).all()
        expected = moved(hf, "encoder", "encoder", [[3]])[:, :, 0].T
        np.testing.assert_allclose(inside[:, 3], expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_heads_are_those_asked_for(family):
    hf = tiny_model(family, torch.float64)
    model = whence.load(hf)
    options = {"method": "value_zeroing", "normalize": False}
    expected = loops(hf, heads=[1])
    compared(model.attribute(PROMPT, CONTINUATION, heads=1, **options), expected)
    both = loops(hf, heads=[0, 1])
    compared(model.attribute(PROMPT, CONTINUATION, heads=slice(2), **options), both)
    by_layer = torch.stack([torch.zeros_like(expected[..., 0]), expected[..., 1]], dim=-1)
    out = model.attribute(PROMPT, CONTINUATION, heads={1: [1]}, **options)
    compared(out, by_layer)
    out = model.attribute(PROMPT, CONTINUATION, method="value_zeroing", heads={-1: 1})
    assert np.nanmax(out.scores.values[..., 0]) == 0, "rounding was divided by rounding"


def test_each_kind_of_attention_has_its_own_heads():
    hf = tiny_model("marian", torch.float64)
    model = whence.load(hf)
    options = {"method": "value_zeroing", "normalize": False}
    out = model.attribute(PROMPT, CONTINUATION, heads={"cross": 0, "decoder": {0: 1}, "encoder": [2, 3]}, **options)
    expected = torch.cat([loops(hf, heads=[0])[:, :5], loops(hf, heads=[1])[:, 5:]], dim=1)
    expected[:, 5:, 1] = 0
    compared(out, expected)
    inside = moved(hf, "encoder", "encoder", [[token] for token in range(5)], heads=[2, 3]).permute(1, 2, 0)
    np.testing.assert_allclose(out.extras["encoder_self"].values, inside.numpy(), rtol=1e-4, atol=1e-6)


def test_a_head_that_shares_its_value_loses_it_alone():
    hf = tiny_model("llama", torch.float64)
    inputs, query = text_inputs(hf, PROMPT, CONTINUATION)
    weights = attentions(hf, inputs)["decoder"]
    expected = torch.zeros(3, 7, 2, dtype=torch.float64)
    for layer, block in enumerate(blocks(hf, "decoder")):
        clean = output_of(hf, inputs, block)
        value = output_of(hf, inputs, block.self_attn.v_proj).unflatten(-1, (2, -1))
        for key in range(7):
            lost = torch.zeros(7, 4, value.shape[-1], dtype=torch.float64)
            # Heads 2 and 3 share the second value.
            lost[:, 3] = weights[layer, 3, :, key, None] * value[key, 1]
            edit = (projection(block, "decoder"), lambda z, lost=lost: z - lost.flatten(1))
            changed = output_of(hf, inputs, block, given=[edit])
            expected[:, key, layer] = cosine(clean, changed)[query]
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="value_zeroing", heads=3, normalize=False)
    compared(out, expected)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_last_state_may_be_that_of_the_last_norm(family):
    hf = tiny_model(family, torch.float64)
    inputs, query = text_inputs(hf, PROMPT, CONTINUATION)
    model = whence.load(hf)
    plain = model.attribute(PROMPT, CONTINUATION, method="value_zeroing", normalize=False)
    out = model.attribute(PROMPT, CONTINUATION, method="value_zeroing", normalize=False, state="final_norm")
    np.testing.assert_allclose(out.scores.values[..., :-1], plain.scores.values[..., :-1], rtol=1e-4, atol=1e-7)
    for stack, norm, first in (("encoder", "encoder.final_layer_norm", 0), ("decoder", "decoder.final_layer_norm", 5)):
        if family == "llama" and stack == "encoder":
            continue
        last = hf.model.norm if family == "llama" else hf.get_submodule(norm)
        clean = output_of(hf, inputs, last)
        block = blocks(hf, stack)[-1]
        for key in range(3):
            edit = value_edit(hf, block, stack, without([key]))
            expected = cosine(clean, output_of(hf, inputs, last, [edit])).numpy()
            if stack == "encoder":
                found = out.extras["encoder_self"].values[:, key, -1]
            else:
                found, expected = out.scores.values[:, key + first * (family == "t5"), -1], expected[query]
            np.testing.assert_allclose(np.nan_to_num(found), expected, rtol=1e-4, atol=1e-6)
    assert np.nanmax(np.abs(out.scores.values[..., -1] - plain.scores.values[..., -1])) > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_rollout_is_the_product_of_normalised_scores(family):
    hf = tiny_model(family, torch.float64)
    _, query = text_inputs(hf, PROMPT, CONTINUATION)
    own = moved(hf, "decoder", "decoder", [[key] for key in range(max(query) + 1)])
    sources = 0
    if family == "t5":
        sources = len(PROMPT)
        keys = [[key] for key in range(sources)]
        encoder = torch.eye(sources).double()
        for layer in shares(moved(hf, "encoder", "encoder", keys), 2):
            encoder = layer @ encoder
        both = shares(torch.cat([moved(hf, "decoder", "cross", keys), own], dim=2), 2)
        cross, own = both[..., :sources] @ encoder, both[..., sources:]
    else:
        cross, own = torch.zeros(len(own), own.shape[1], 0), shares(own, 2)
    states = torch.cat([torch.zeros(own.shape[1], sources), torch.eye(own.shape[1])], dim=1).double()
    for layer, source in zip(own, cross, strict=True):
        states = layer @ states
        states[:, :sources] += source
    model = whence.load(hf)
    out = model.attribute(PROMPT, CONTINUATION, method="value_zeroing", rollout=True)
    assert out.scores.names == ("step", "token")
    compared(out, states[query])
    np.testing.assert_allclose(np.nansum(out.scores.values, 1), 1, atol=1e-5)
    merged = model.attribute(PROMPT, CONTINUATION, method="value_zeroing", rollout=True, segments=[[0, 1]])
    np.testing.assert_allclose(merged.scores.values[:, 0], out.scores.values[:, :2].sum(1), rtol=1e-5)
    if family == "t5":
        np.testing.assert_allclose(out.extras["encoder_self"].values, encoder.numpy(), rtol=1e-4, atol=1e-6)


def test_spans_have_the_mean_of_their_steps():
    model = whence.load(tiny_model("gpt2"))
    for options in ({}, {"rollout": True}):
        each = model.attribute(PROMPT, CONTINUATION, method="value_zeroing", **options).scores.values
        span = model.attribute(PROMPT, CONTINUATION, method="value_zeroing", steps=[(0, 3), 0], **options)
        np.testing.assert_allclose(span.scores.values[0], np.nan_to_num(each).mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(span.scores.values[1], each[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_side_that_is_left_out_is_not_removed(family):
    model = whence.load(tiny_model(family))
    options = {"method": "value_zeroing", "normalize": False}
    whole = model.attribute(PROMPT, CONTINUATION, **options)
    for side in ("source", "prefix"):
        part = model.attribute(PROMPT, CONTINUATION, sides=side, **options)
        kept = [token.side == side for token in whole.tokens]
        np.testing.assert_allclose(part.scores.values[:, kept], whole.scores.values[:, kept], rtol=1e-3, atol=1e-6)
        assert np.isnan(part.scores.values[:, [not one for one in kept]]).all()
        assert part.info["engine"]["rows"] == 1 + sum(kept)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "marian"])
@pytest.mark.parametrize("chunk", [None, 3, 1])
def test_no_more_tokens_are_pushed_than_rows_need(family, chunk, monkeypatch):
    hf = tiny_model(family)
    model = whence.load(hf)
    expected = model.attribute(PROMPT, CONTINUATION, method="value_zeroing")
    if chunk is not None:
        monkeypatch.setattr("whence.probe.zeroing.make_rows", lambda *args, **options: chunk)
    with tokens_pushed(hf) as counts:
        out = model.attribute(PROMPT, CONTINUATION, method="value_zeroing")
    both = len(PROMPT) + len(CONTINUATION)
    rows = out.info["engine"]["rows"]
    read = both if model.encoder_decoder else both - 1
    assert sum(counts) == rows * read <= (both + 1) * both
    assert rows == len(out.tokens) + 1
    np.testing.assert_allclose(out.scores.values, expected.scores.values, rtol=1e-3, atol=1e-6)
    assert model.estimate(PROMPT, CONTINUATION, method="value_zeroing").forwards - rows in (0, 1)


def test_one_request_answers_all(monkeypatch):
    from whence.models.model import Model

    asked = []
    run = Model.run
    monkeypatch.setattr(Model, "run", lambda self, *args, **data: asked.append(args) or run(self, *args, **data))
    model = whence.load(tiny_model("t5"))
    model.attribute([PROMPT, PROMPT[:2]], [CONTINUATION, [9]], method="value_zeroing")
    assert len(asked) == 1


def test_the_model_is_as_it_was():
    hf = tiny_model("gpt2")
    inputs, _ = text_inputs(hf, PROMPT, CONTINUATION)
    before = hf(**inputs).logits
    whence.load(hf).attribute(PROMPT, CONTINUATION, method="value_zeroing")
    torch.testing.assert_close(hf(**inputs).logits, before, rtol=0, atol=0)


def test_a_layer_that_nothing_moves_is_reported_and_stays_zero():
    hf = tiny_model("gpt2")
    with torch.no_grad():
        hf.transformer.h[1].attn.c_proj.weight.zero_()
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="value_zeroing")
    unmoved = {check.name: check for check in out.checks}["unmoved"]
    assert unmoved.value == 0.5
    assert unmoved.passed is False
    assert np.nanmax(out.scores.values[..., 1]) == 0
    np.testing.assert_allclose(np.nansum(out.scores.values[..., 0], 1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, "unknown metric of value_zeroing: 'manhattan'"),
        ({"state": "resid_mid"}, "unknown state of value_zeroing: 'resid_mid'"),
        ({"threshold": -1.0}, "threshold is a distance of at least 0"),
        ({"threshold": float("nan")}, "threshold is a distance of at least 0"),
        ({"rollout": True, "normalize": False}, "leave normalize=False out"),
        ({"heads": 4}, "heads: there is no head 4; the decoder has 4 heads"),
        ({"heads": {2: 0}}, "heads: there is no layer 2; the decoder has 2 layers"),
        ({"heads": {"self": 0}}, "unknown part of a model in heads: 'self'"),
        ({"heads": {"decoder": {0: "all"}}}, "heads is a number, a slice"),
        ({"heads": {0.5: 1}}, "the layers of a mapping are numbers"),
        ({"heads": {"decoder": {}}}, "names no head"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, method="value_zeroing", **options)


def test_a_norm_that_is_not_there_cannot_be_asked_for():
    model = whence.load(tiny_model("bart"))
    with pytest.raises(whence.UnsupportedError, match="no norm after its last block; leave state='final_norm' out"):
        model.attribute(PROMPT, CONTINUATION, method="value_zeroing", state="final_norm")
