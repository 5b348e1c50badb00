"""Attention weights against those that transformers reports, one step at a time, of the untraced model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_reference import step_inputs
from tiny_models import FAMILIES, VARIANTS, is_encoder_decoder, tiny_model
from untraced import attentions, tokens_pushed
from whence.models.model import Model
from whence.probe.mixing import mixture_gap

ALL = (*FAMILIES, *VARIANTS)
PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def stepwise(hf) -> torch.Tensor:
    """Weights [step, token, layer, head] from the last position of truncated copies; NaN where a step cannot look."""
    streams = 2 if hf.config.is_encoder_decoder else 1
    width = len(PROMPT) + len(CONTINUATION) - (streams == 1)
    rows = []
    for step in range(len(CONTINUATION)):
        found = attentions(hf, step_inputs(hf, PROMPT, CONTINUATION, step))
        row = torch.cat([found[part][:, :, -1] for part in ("cross", "decoder") if part in found], dim=2)
        rows.append(torch.nn.functional.pad(row, (0, width - row.shape[2]), value=torch.nan).permute(2, 0, 1))
    return torch.stack(rows)


@pytest.mark.parametrize("family", ALL)
def test_weights_are_those_that_transformers_reports(family):
    hf = tiny_model(family)
    expected = stepwise(hf)
    model = whence.load(hf)
    out = model.attribute(PROMPT, CONTINUATION, method="attention")
    assert out.scores.names == ("step", "token", "layer", "head")
    np.testing.assert_allclose(out.scores.values, expected.numpy(), rtol=0, atol=1e-6)
    assert np.nanstd(out.scores.values) > 0.05, "degenerate: every key gets the same"
    assert out.verified
    names = {check.name: check for check in out.checks}
    assert names["mixture"].value < 1e-5
    if family == "gpt_oss":
        assert names["missing_mass"].value > 0.01
        assert names["missing_mass"].passed is None
    else:
        assert names["row sums"].value < 1e-5
    if is_encoder_decoder(family):
        whole = attentions(hf, step_inputs(hf, PROMPT, CONTINUATION, 2))["encoder"]
        inside = out.extras["encoder_self"]
        assert inside.names == ("step", "token", "layer", "head")
        np.testing.assert_allclose(inside.values, whole.permute(2, 3, 0, 1).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "falcon", "opt", "gpt_neox", "t5", "marian"])
def test_fused_attention_gives_the_same_weights(family):
    eager, fused = (
        whence.load(tiny_model(family, attention=kind)).attribute(PROMPT, CONTINUATION, method="attention")
        for kind in ("eager", "sdpa")
    )
    np.testing.assert_allclose(fused.scores.values, eager.scores.values, rtol=0, atol=1e-5)
    assert np.nanmax(fused.scores.values) > 0.1
    for name, scores in eager.extras.items():
        np.testing.assert_allclose(fused.extras[name].values, scores.values, rtol=0, atol=1e-5)
    assert fused.verified


@pytest.mark.parametrize("method", ["attention", "attention_rollout", "value_zeroing"])
def test_an_implementation_without_weights_says_what_to_do(method):
    model = whence.load(tiny_model("qwen2"))
    model.config._attn_implementation = "flash_attention_2"
    try:
        with pytest.raises(whence.UnsupportedError, match='attn_implementation="eager"'):
            model.attribute(PROMPT, CONTINUATION, method=method)
    finally:
        model.config._attn_implementation = "eager"


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_layers_and_heads_are_those_asked_for(family):
    model = whence.load(tiny_model(family))
    options = {"method": "attention"}
    whole = model.attribute(PROMPT, CONTINUATION, **options)
    part = model.attribute(PROMPT, CONTINUATION, layers=[1, 0], heads=[-1, 0], **options)
    np.testing.assert_array_equal(part.scores.values, whole.scores.values[:, :, [1, 0]][:, :, :, [3, 0]])
    assert [axis.labels for axis in part.scores.axes[2:]] == [("1", "0"), ("3", "0")]
    one = model.attribute(PROMPT, CONTINUATION, layers=-1, heads=slice(1, 3), **options)
    np.testing.assert_array_equal(one.scores.values, whole.scores.values[:, :, -1:, 1:3])


def test_each_stack_has_its_own_layers_and_heads():
    model = whence.load(tiny_model("marian"))
    whole = model.attribute(PROMPT, CONTINUATION, method="attention")
    part = model.attribute(
        PROMPT, CONTINUATION, method="attention", layers={"encoder": 1}, heads={"encoder": [3, 2], "decoder": 1}
    )
    np.testing.assert_array_equal(part.scores.values, whole.scores.values[:, :, :, 1:2])
    inside = whole.extras["encoder_self"].values
    np.testing.assert_array_equal(part.extras["encoder_self"].values, inside[:, :, 1:2][:, :, :, [3, 2]])


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_spans_have_the_mean_and_segments_the_sum(family):
    model = whence.load(tiny_model(family))
    each = model.attribute(PROMPT, CONTINUATION, method="attention").scores.values
    span = model.attribute(PROMPT, CONTINUATION, method="attention", steps=[(0, 3), 2]).scores.values
    width = span.shape[1]
    np.testing.assert_allclose(span[0], np.nan_to_num(each).mean(0)[:width], atol=1e-6)
    np.testing.assert_allclose(span[1], each[2], atol=1e-6)
    merged = model.attribute(PROMPT, CONTINUATION, method="attention", segments=[[0, 1], [2, 4]]).scores.values
    np.testing.assert_allclose(merged[:, 0], each[:, :2].sum(1), atol=1e-6)
    np.testing.assert_allclose(merged[:, 1], each[:, [2, 4]].sum(1), atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "bloom", "t5", "marian"])
@pytest.mark.parametrize("method", ["attention", "attention_rollout", "value_zeroing"])
def test_a_batch_of_two_lengths_is_two_texts(family, method):
    model = whence.load(tiny_model(family))
    prompts, continuations = [PROMPT, [11, 30]], [CONTINUATION, [9, 14, 41, 5]]
    for options in [{}] if method == "attention" else [{}, {"rollout": True} if method == "value_zeroing" else {}]:
        both = model.attribute(prompts, continuations, method=method, **options)
        for out, prompt, continuation in zip(both, prompts, continuations, strict=True):
            alone = model.attribute(prompt, continuation, method=method, **options)
            np.testing.assert_allclose(out.scores.values, alone.scores.values, rtol=1e-4, atol=1e-5)
            assert out.verified
            assert set(out.extras) == set(alone.extras)
            for name, scores in alone.extras.items():
                np.testing.assert_allclose(out.extras[name].values, scores.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("method", ["attention", "attention_rollout"])
def test_one_pass_over_the_text_is_all(family, method):
    hf = tiny_model(family)
    model = whence.load(hf)
    with tokens_pushed(hf) as counts:
        model.attribute(PROMPT, CONTINUATION, method=method)
    assert 0 < sum(counts) <= len(PROMPT) + len(CONTINUATION)


def test_only_the_rows_of_the_steps_leave_the_model(monkeypatch):
    seen = []
    run = Model.run

    def recorded(self, program, **data):
        result = run(self, program, **data)
        seen.append(sum(value.numel() for value in result.values()))
        return result

    monkeypatch.setattr(Model, "run", recorded)
    model = whence.load(tiny_model("gpt2"))
    model.attribute([7, 21, 9, 33, 12, 4, 5, 6], [17, 8], steps=[1], method="attention")
    layers, heads, keys = 2, 4, 9
    assert seen == [layers * heads * keys + 1]


def test_a_pattern_that_the_model_did_not_use_is_found_out():
    torch.manual_seed(0)
    pattern = torch.rand(2, 4, 5, 5).softmax(-1)
    values = torch.randn(2, 5, 2, 3)
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, values.repeat_interleave(2, dim=2))
    assert mixture_gap(pattern, values, z).max() < 1e-6
    uniform = torch.full_like(pattern, 0.2)
    assert (mixture_gap(uniform, values, z) > 1e-3).all()
    z[1, 3] *= 1.01
    gap = mixture_gap(pattern, values, z)
    assert gap[1, 3] == pytest.approx(0.01 / 1.01, rel=1e-4)
    assert gap.flatten().sort().values[-2] < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 2}, "layers: there is no layer 2; the decoder has 2 layers"),
        ({"heads": [0, 4]}, "heads: there is no head 4; the decoder has 4 heads"),
        ({"heads": [0, -4]}, "names one twice"),
        ({"layers": []}, "names none"),
        ({"layers": "all"}, "layers is a number, a slice, a list of numbers"),
        ({"heads": True}, "heads is a number"),
        ({"heads": {"cross": 0}}, "unknown part of a model in heads: 'cross'"),
        ({"layers": {0: [1]}}, "layers is a number"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, method="attention", **options)


def test_a_place_without_patterns_is_refused():
    from dataclasses import replace

    from whence.core.contract import Need

    model = whence.load(tiny_model("gpt2"))
    elsewhere = replace(model, provides=model.provides - {Need.INTERNALS, Need.ATTENTION})
    for method in ("attention", "attention_rollout", "value_zeroing"):
        with pytest.raises(whence.UnsupportedError, match="needs attention patterns, values inside the blocks"):
            elsewhere.attribute(PROMPT, CONTINUATION, method=method)


def test_choices_are_kept_with_the_result(tmp_path):
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method="value_zeroing", heads={0: slice(1, 3), 1: [0]})
    out.save(tmp_path / "out.json")
    kept = whence.load_attribution(tmp_path / "out.json").info["method_options"]["heads"]
    assert dict(kept) == {"0": "1:3:", "1": (0,)}
