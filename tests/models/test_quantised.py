"""Weights of 4 and 8 bits: the numbers are those of plain PyTorch on the same quantised model."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import whence
from quantised_models import dequantised, layers, pack, quantised_by_transformers
from slow_reference import attribution, whole_text_attribution
from tiny_models import tiny_model, tiny_tokenizer
from whence.models.quantised import FORMATS, rows_interact

PROMPT, CONTINUATION = [7, 21, 9, 33], [17, 8, 40]
# bitsandbytes quantises in blocks of 64 numbers, so nothing may be narrower.
WIDE = {
    "gpt2": {"n_embd": 64},
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "t5": {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_decoder_layers": 2},
}
METHODS = (
    ("saliency", {}),
    ("input_x_gradient", {}),
    ("integrated_gradients", {"n_steps": 4, "baseline": 11, "keep": "none"}),
)


@pytest.fixture(scope="module", params=sorted(WIDE))
def folder(request, tmp_path_factory):
    where = tmp_path_factory.mktemp("checkpoints") / request.param
    tiny_model(request.param, **WIDE[request.param]).save_pretrained(where)
    tiny_tokenizer(request.param).save_pretrained(where)
    return where


@pytest.fixture(params=FORMATS)
def model(folder, request):
    return whence.load(folder, dtype=request.param, device="cpu")


def test_weights_are_quantised_and_products_are_in_float32(model):
    hf = model.nn._module
    kinds = {type(module).__name__ for module in hf.modules()}
    kept = model.info["quantisation"]
    assert kept in FORMATS
    assert ("Linear8bitLt" if kept == "int8" else "Linear4bit") in kinds
    assert model.dtype == torch.float32
    for module in hf.modules():
        if hasattr(module, "compute_dtype"):
            assert module.compute_dtype == torch.float32


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_scores_equal_plain_autograd_on_the_same_quantised_model(model, method, options):
    hf = model.nn._module
    out = model.attribute(PROMPT, CONTINUATION, method=method, target="logprob", progress=False, **options)
    rows = [found["rows"][0] for found in model.embedding_rows([11]).values()]
    reference = whole_text_attribution if model.rows_interact else truncated
    expected = reference(
        hf,
        PROMPT,
        CONTINUATION,
        method=method,
        target="logprob",
        baselines=[row[None, None] for row in rows],
        n_steps=4,
    ).numpy()
    found = np.where(np.isnan(expected), np.nan, out.scores.values)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5 * np.nanmax(np.abs(expected)))
    assert np.isfinite(expected).any()
    assert all(check.passed is not False for check in out.checks if check.name in ("no-op", "leak"))


def truncated(*arguments, **options):
    """One step at a time on truncated copies."""
    return attribution(*arguments, **options)[0]


def test_forward_mode_or_reverse_where_a_kernel_has_no_tangent(model):
    out = model.attribute(
        PROMPT, CONTINUATION, method="input_x_gradient", segments=[[0, 1, 2, 3]], sides="source", progress=False
    )
    reverse = model.attribute(
        PROMPT,
        CONTINUATION,
        method="input_x_gradient",
        segments=[[0, 1, 2, 3]],
        sides="source",
        mode="reverse",
        progress=False,
    )
    np.testing.assert_allclose(out.scores.values, reverse.scores.values, rtol=1e-4, atol=1e-5)
    if model.info["quantisation"] != "int8":
        assert out.info["engine"]["mode"] == "forward"
        return
    assert out.info["engine"]["mode"] == "reverse"
    assert "no tangent" in out.info["engine"]["mode_note"]
    with pytest.raises(whence.UnsupportedError, match="mode='reverse'"):
        model.attribute(PROMPT, CONTINUATION, method="input_x_gradient", mode="forward")


def test_a_batch_equals_each_alone(model):
    prompts, texts = [PROMPT, [5, 6]], [CONTINUATION, [4, 11]]
    together = model.attribute(prompts, texts, target="logprob")
    for one, prompt, text in zip(together, prompts, texts, strict=True):
        alone = model.attribute(prompt, text, target="logprob")
        np.testing.assert_allclose(one.scores.values, alone.scores.values, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_that_is_quantised_already(folder, tmp_path):
    first = whence.load(folder, dtype="nf4", device="cpu")
    first.nn._module.save_pretrained(tmp_path)
    again = whence.load(tmp_path, device="cpu")
    assert again.info["quantisation"] == "nf4"
    a, b = (one.attribute(PROMPT, CONTINUATION, target="logprob").scores.values for one in (first, again))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(whence.InputError, match="quantised already"):
        whence.load(tmp_path, dtype="int8")


def test_a_configuration_of_ones_own(folder):
    from transformers import BitsAndBytesConfig

    own = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"
    )
    model = whence.load(folder, quantization_config=own, device="cpu")
    assert model.info["quantisation"] == "nf4"
    assert model.attribute(PROMPT, CONTINUATION).verified
    flat = whence.load(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0))
    assert not rows_interact(flat.config)
    with pytest.raises(whence.InputError, match="quantised already"):
        whence.load(folder, quantization_config=own, dtype="nf4")


@pytest.fixture
def packing(monkeypatch):
    """Let bitsandbytes take any CPU for one with AVX512-BF16, where layers pack their weights on first use."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


@pytest.mark.usefixtures("packing")
@pytest.mark.parametrize("in_memory", [False, True])
def test_weights_stay_in_the_layout_that_has_gradients(folder, in_memory):
    hf = quantised_by_transformers(folder)
    model = whence.load(hf) if in_memory else whence.load(folder, dtype="nf4", device="cpu")
    kept = [layer.weight.data.clone() for layer in layers(model.nn._module)]
    model.attribute(PROMPT, CONTINUATION)
    for layer, before in zip(layers(model.nn._module), kept, strict=True):
        assert torch.equal(layer.weight.data, before)
        assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


@pytest.mark.usefixtures("packing")
def test_shapes_that_packing_does_not_take(tmp_path):
    """Rows that are no multiple of a block of quantisation, and too few of them."""
    tiny_model("llama", hidden_size=48, intermediate_size=72).save_pretrained(tmp_path)
    model = whence.load(tmp_path, dtype="nf4", device="cpu")
    out = model.attribute(PROMPT, CONTINUATION, method="saliency", target="logprob")
    expected = truncated(model.nn._module, PROMPT, CONTINUATION, method="saliency", target="logprob").numpy()
    np.testing.assert_allclose(out.scores.values, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_was_packed_before_is_unpacked(folder, nested):
    hf = quantised_by_transformers(folder, bnb_4bit_use_double_quant=nested)
    weights = [dequantised(layer) for layer in layers(hf)]
    codes = [layer.weight.data.clone() for layer in layers(hf)]
    pack(hf)
    model = whence.load(hf)
    for layer, code, weight in zip(layers(hf), codes, weights, strict=True):
        assert torch.equal(layer.weight.data, code)
        # Packing rounds the scales to bfloat16, which has eight bits.
        torch.testing.assert_close(dequantised(layer), weight, rtol=2**-8, atol=0)
    out = model.attribute(PROMPT, CONTINUATION, method="saliency", target="logprob")
    expected = truncated(hf, PROMPT, CONTINUATION, method="saliency", target="logprob").numpy()
    np.testing.assert_allclose(out.scores.values, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_of_a_model_that_was_packed(folder, tmp_path, nested):
    hf = quantised_by_transformers(folder, bnb_4bit_use_double_quant=nested)
    weights = [dequantised(layer) for layer in layers(hf)]
    pack(hf)
    hf.save_pretrained(tmp_path)
    model = whence.load(tmp_path, device="cpu")
    # Scales that are quantised in eight bits are so a second time when they are saved.
    limit = 0.05 if nested else 2**-8
    for layer, weight in zip(layers(model.nn._module), weights, strict=True):
        torch.testing.assert_close(dequantised(layer), weight, rtol=limit, atol=0)


def test_eight_bits_do_not_fill_the_log(folder, caplog):
    model = whence.load(folder, dtype="int8", device="cpu")
    with caplog.at_level(logging.WARNING):
        model.attribute(PROMPT, CONTINUATION)
    assert not [record for record in caplog.records if "cast" in record.getMessage()]


def test_nan_in_the_middle_names_the_layer(folder):
    """One layer's quantisation scales are broken: neither its weights nor its input say so."""
    model = whence.load(folder, dtype="nf4", device="cpu")
    hf = model.nn._module
    stack, path = next(iter(model.architecture.paths["blocks"].items()))
    block = hf.get_submodule(f"{path}.1")
    module = [module for module in block.modules() if type(module).__name__ == "Linear4bit"][-1]
    module.weight.quant_state.absmax.fill_(float("nan"))
    prefix = rf"{stack}\." if model.encoder_decoder else ""
    with pytest.raises(whence.NonFiniteScore, match=rf"from {prefix}blocks\.1\.resid_(mid|post) on"):
        model.attribute(PROMPT, CONTINUATION)
