"""Direct logit and ALTI-logit: loops over tokens with the weights as they are, and the sum that is the logit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_parts import alti_maps, decomposed, model_inputs, norm_of, step_rows, widths_of
from tiny_models import FAMILIES, VARIANTS, tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]
METHODS = ("direct_logit", "alti_logit")
NO_PLAIN_SUM = ("bart", "marian", "opt_post_norm", "bloom_post_residual")
SLOW = ("gpt2", "llama", "gemma2", "t5")


def total(out):
    """Scores and components of every step, added up."""
    parts = [np.nan_to_num(out.scores.values), *(one.values for one in out.extras.values())]
    return sum(part.reshape(len(part), -1).astype(np.float64).sum(1) for part in parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [name for name in FAMILIES + VARIANTS if name not in NO_PLAIN_SUM])
def test_scores_and_components_sum_to_the_logit(family, method):
    hf = tiny_model(family)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method=method)
    assert out.verified
    assert {check.name for check in out.checks} >= {"logit", "rebuilding"}
    with torch.no_grad():
        logits = hf(**model_inputs(hf, PROMPT, CONTINUATION), use_cache=False).logits[0]
    expected = logits[step_rows(hf, PROMPT, CONTINUATION), CONTINUATION]
    np.testing.assert_allclose(total(out), expected, atol=1e-4)
    assert np.abs(out.scores.values[np.isfinite(out.scores.values)]).max() > 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", NO_PLAIN_SUM)
def test_a_stream_that_is_no_plain_sum_is_refused(family, method):
    with pytest.raises(whence.UnsupportedError, match=f"{method} shares out .* passes through norms"):
        whence.load(tiny_model(family)).attribute(PROMPT, CONTINUATION, method=method)


def brought(hf, seen, found, step, row):
    """What each head brings from each key to the logit of a step, per module: [head, key]; and the map of vectors."""
    name = {"gpt2": "transformer.ln_f", "t5": "decoder.final_layer_norm"}.get(hf.config.model_type, "model.norm")
    args, _, _ = seen[name]
    apply = norm_of(hf.get_submodule(name)).frozen(args[0][0, row])
    direction = hf.get_output_embeddings().weight[CONTINUATION[step]]

    def logit(x):
        return apply(x) @ direction

    parts = {}
    for one in found:
        if one.stack == "decoder":
            vectors = one.added(row).parts
            parts[one.kind, one.layer] = torch.stack([torch.stack([logit(x) for x in head]) for head in vectors])
    return parts, logit


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", SLOW)
def test_scores_equal_loops_over_tokens(family, method):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    out = model.attribute(PROMPT, CONTINUATION, method=method, per_layer=True, per_head=True)
    found, seen, _ = decomposed(hf, PROMPT, CONTINUATION)
    widths = widths_of(hf, PROMPT, CONTINUATION)
    maps = alti_maps(found, widths)
    eye = torch.eye(sum(widths)).double()
    for step, row in enumerate(step_rows(hf, PROMPT, CONTINUATION)):
        parts, _ = brought(hf, seen, found, step, row)
        expected = torch.zeros(*out.scores.shape[1:]).double()
        before = {"attn": maps["decoder", "start", 0], "cross_attn": maps["encoder", "end", 0]}
        for (kind, layer), part in parts.items():
            plain = eye[: widths[0]] if kind == "cross_attn" else eye[-widths[-1] :]
            routes = before[kind] if method == "alti_logit" else plain
            expected[:, layer] += (part @ routes).T
            last = "cross_attn" if family == "t5" else "attn"
            if kind == last:
                before["attn"] = maps["decoder", last, layer]
        np.testing.assert_allclose(np.nan_to_num(out.scores.values[step]), expected, atol=1e-5)
    summed = model.attribute(PROMPT, CONTINUATION, method=method)
    np.testing.assert_allclose(summed.scores.values, out.scores.values.sum((2, 3)), atol=1e-5)
    by_head = model.attribute(PROMPT, CONTINUATION, method=method, per_head=True)
    np.testing.assert_allclose(by_head.scores.values, out.scores.values.sum(2), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_components_are_what_the_modules_add(method):
    hf = tiny_model("gpt2", dtype=torch.float64)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method=method)
    found, seen, _ = decomposed(hf, PROMPT, CONTINUATION)
    for step, row in enumerate(step_rows(hf, PROMPT, CONTINUATION)):
        _, logit = brought(hf, seen, found, step, row)
        first = seen["transformer.h.0"][0][0][0, row]
        assert out.extras["embedding"].values[step] == pytest.approx(float(logit(first)), abs=1e-5)
        for layer, block in enumerate(hf.transformer.h):
            added = seen[f"transformer.h.{layer}.mlp"][2][0, row]
            assert out.extras["mlp"].values[step, layer] == pytest.approx(float(logit(added)), abs=1e-5)
            bias = float(logit(block.attn.c_proj.bias))
            assert out.extras["attention_bias"].values[step, layer] == pytest.approx(bias, abs=1e-5)
        shift = float(hf.transformer.ln_f.bias @ hf.lm_head.weight[CONTINUATION[step]])
        assert out.extras["final_norm_bias"].values[step] == pytest.approx(shift, abs=1e-5)
    assert [axis.name for axis in out.extras["mlp"].axes] == ["step", "layer"]
    assert out.extras["unembed_bias"].values.tolist() == [0, 0, 0]


def test_what_a_soft_cap_takes_away_and_a_bias_adds():
    hf = tiny_model("gemma2")
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="direct_logit")
    before = total(out) - out.extras["after_unembed"].values
    np.testing.assert_allclose(3 * np.tanh(before / 3), total(out), atol=1e-4)
    hf = tiny_model("mbart")
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="direct_logit")
    np.testing.assert_allclose(out.extras["after_unembed"].values, hf.final_logits_bias[0, CONTINUATION], atol=1e-5)


def test_attention_alone_in_one_layer_is_the_whole_story():
    # No MLP, no embedding in the stream: what attention brings is all of the stream, and the scores are the logit.
    hf = tiny_model("llama", num_hidden_layers=1)
    hf.model.layers[0].mlp.down_proj.weight.data.zero_()
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="alti_logit", embedding="self")
    direct = whence.load(hf).attribute(PROMPT, CONTINUATION, method="direct_logit", embedding="self")
    np.testing.assert_array_equal(out.scores.values, direct.scores.values)
    assert all(np.abs(one.values).max() < 1e-5 for one in out.extras.values())
    with torch.no_grad():
        logits = hf(torch.tensor([[*PROMPT, *CONTINUATION[:-1]]])).logits[0, 4:]
    expected = [float(logits[step, token]) for step, token in enumerate(CONTINUATION)]
    np.testing.assert_allclose(np.nansum(out.scores.values, axis=1), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_what_is_separate_can_be_shared_out(family):
    model = whence.load(tiny_model(family))
    plain = model.attribute(PROMPT, CONTINUATION, method="alti_logit")
    shared = model.attribute(PROMPT, CONTINUATION, method="alti_logit", mlp="alti", embedding="self")
    assert not {"mlp", "embedding"} & set(shared.extras)
    np.testing.assert_allclose(total(plain), total(shared), atol=1e-4)
    maps = model.attribute(PROMPT, CONTINUATION, method="alti", all_layers=True).scores.values
    moved = np.einsum("tl,til->ti", plain.extras["mlp"].values, np.nan_to_num(maps))
    expected = np.nan_to_num(plain.scores.values) + moved
    places = np.arange(len(CONTINUATION)) + len(PROMPT) - (not model.encoder_decoder)
    expected[np.arange(len(CONTINUATION)), places] += plain.extras["embedding"].values
    np.testing.assert_allclose(np.nan_to_num(shared.scores.values), expected, atol=1e-4)
    layers = model.attribute(PROMPT, CONTINUATION, method="alti_logit", mlp="alti", per_layer=True).scores.values
    np.testing.assert_allclose(np.nan_to_num(layers).sum(2), np.nan_to_num(plain.scores.values) + moved, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_span_has_the_sum_of_its_steps(family, method):
    model = whence.load(tiny_model(family))
    steps = model.attribute(PROMPT, CONTINUATION, method=method)
    span = model.attribute(PROMPT, CONTINUATION, method=method, steps="whole")
    expected = np.nan_to_num(steps.scores.values).sum(0)
    np.testing.assert_allclose(np.nan_to_num(span.scores.values[0]), expected, atol=1e-4)
    np.testing.assert_allclose(span.extras["mlp"].values[0], steps.extras["mlp"].values.sum(0), atol=1e-4)
    assert span.verified


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mbart"])
def test_components_of_a_batch_are_those_of_each_alone(family, method):
    model = whence.load(tiny_model(family))
    prompts, texts = [PROMPT, [30, 8]], [CONTINUATION, [11]]
    both = model.attribute(prompts, texts, method=method)
    for one, prompt, text in zip(both, prompts, texts, strict=True):
        alone = model.attribute(prompt, text, method=method)
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5)
        for name, scores in alone.extras.items():
            np.testing.assert_allclose(one.extras[name].values, scores.values, atol=1e-5)


def test_components_are_saved_with_the_scores(tmp_path):
    out = whence.load(tiny_model("gpt2")).attribute(PROMPT, CONTINUATION, method="direct_logit")
    out.save(tmp_path / "out.json")
    assert whence.load_attribution(tmp_path / "out.json").equals(out)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mlp": "shared"}, whence.InputError, "mlp is 'separate' or 'alti'"),
        ({"embedding": "own"}, whence.InputError, "embedding is 'separate' or 'self'"),
        ({"norm": "l0"}, whence.InputError, "norm is 'l1' or 'l2'"),
        ({"embedding": "self", "per_layer": True}, whence.InputError, "no layer and no head"),
        ({"mlp": "alti", "per_head": True}, whence.InputError, "an MLP belongs to no head"),
        ({"target": "logprob"}, whence.UnsupportedError, "explains contrast_logits_diff or logit only"),
    ],
)
def test_options_that_make_no_sense(options, error, message):
    with pytest.raises(error, match=message):
        whence.load(tiny_model("gpt2")).attribute(PROMPT, CONTINUATION, method="alti_logit", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": "own"}, "embedding is 'separate' or 'self'"),
        ({"embedding": "self", "per_head": True}, "no layer and no head"),
    ],
)
def test_options_of_direct_logit_that_make_no_sense(options, message):
    with pytest.raises(whence.InputError, match=message):
        whence.load(tiny_model("gpt2")).attribute(PROMPT, CONTINUATION, method="direct_logit", **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", SLOW)
def test_a_difference_of_logits_is_the_difference_of_the_scores(family, method):
    """The last token is never read, so texts that differ in it are the same run."""
    model = whence.load(tiny_model(family))
    other = [*CONTINUATION[:-1], 55]
    first, second = (model.attribute(PROMPT, text, method=method, steps=-1) for text in (CONTINUATION, other))
    given = {"method": method, "target": "contrast_logits_diff", "steps": -1}
    out = model.attribute(PROMPT, CONTINUATION, contrast=other, **given)
    np.testing.assert_allclose(out.scores.values, first.scores.values - second.scores.values, atol=1e-5)
    for name, values in out.extras.items():
        expected = first.extras[name].values - second.extras[name].values
        np.testing.assert_allclose(values.values, expected, atol=1e-5)
    assert out.verified
    with pytest.raises(whence.UnsupportedError, match="take evaluate='main'"):
        model.attribute(PROMPT, CONTINUATION, contrast={"source": [*PROMPT[:-1], 8]}, **given)
