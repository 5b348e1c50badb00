"""Reading sites in a trace: what is read is what the model computes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import nnsight
import pytest
import torch

from site_traces import (
    ALL,
    BIASED,
    SINKS,
    attentions,
    blocks,
    post_norm,
    values_of,
    wrapped,
)
from tiny_models import tiny_inputs, tiny_model
from whence.models.access import write_site


@pytest.mark.parametrize("family", ALL)
def test_every_site_has_the_axes_it_declares(family: str):
    _, found = wrapped(family)
    inputs = tiny_inputs(family)
    batch, length = inputs["input_ids"].shape
    model = wrapped(family)[0]._module
    for name, value in values_of(family).items():
        site = found.site(name)
        positions = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else length
        positions = length if site.stack == "encoder" else positions
        keys = length if "cross_attn" in name else positions
        sizes = {
            "batch": batch,
            "position": positions,
            "source": length,
            "query": positions,
            "key": keys,
            "head": found.head_count[site.stack],
            "vocabulary": model.config.vocab_size,
        }
        assert value.ndim == len(site.axes), name
        for axis, size in zip(site.axes, value.shape, strict=True):
            assert size == sizes.get(axis, size), (name, axis)
        assert torch.isfinite(value).all(), name
        if name.endswith(".k"):
            assert found.head_count[site.stack] % value.shape[2] == 0


@pytest.mark.parametrize("family", ALL)
def test_reads_equal_what_transformers_reports(family: str):
    _, found = wrapped(family)
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, taken: str):
        def hook(module: Any, args: Any, output: Any) -> None:
            value = args[0] if taken == "input" else output
            seen[name] = (value[0] if isinstance(value, tuple) else value).clone()

        return hook

    # A model that nnsight never touched, with plain torch hooks on modules found by torch.
    model = tiny_model(family)
    projections = ("c_proj", "o_proj", "out_proj", "dense", "o")
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in projections and "mlp" not in name and "DenseReluDense" not in name:
            module.register_forward_hook(keep(name, "input"))
    model.get_output_embeddings().register_forward_hook(keep("unembed", "output"))
    for stack, path in found.paths["embed"].items():
        model.get_submodule(path).register_forward_hook(keep(f"{stack} embed", "output"))
    with torch.no_grad():
        output = model(**tiny_inputs(family), use_cache=False, output_hidden_states=True, output_attentions=True)
    values = values_of(family)
    torch.testing.assert_close(values["logits"], output.logits)
    torch.testing.assert_close(values["unembed"], seen["unembed"])
    for stack in found.n_layers:
        start = f"{stack}." if found.encoder_decoder else ""
        kind = start.replace(".", "_")
        hidden = output[f"{kind}hidden_states"]
        torch.testing.assert_close(values[f"{start}embed"], seen[f"{stack} embed"])
        for layer in range(found.n_layers[stack]):
            torch.testing.assert_close(values[f"{start}blocks.{layer}.resid_pre"], hidden[layer])
            if layer:
                torch.testing.assert_close(values[f"{start}blocks.{layer - 1}.resid_post"], hidden[layer])
            pattern = output[f"{kind}attentions"][layer]
            torch.testing.assert_close(values[f"{start}blocks.{layer}.attn.pattern"], pattern, rtol=0, atol=1e-6)
            if f"{start}blocks.{layer}.cross_attn.pattern" in values:
                pattern = output.cross_attentions[layer]
                own = values[f"{start}blocks.{layer}.cross_attn.pattern"]
                torch.testing.assert_close(own, pattern, rtol=0, atol=1e-6)
        last = values.get(f"{start}ln_final", values[f"{start}blocks.{found.n_layers[stack] - 1}.resid_post"])
        if family != "opt_post_norm":  # OPT projects to the embedding's size before it reports the last state
            torch.testing.assert_close(last, hidden[-1])
    zs = {name: value.flatten(-2) for name, value in values.items() if name.endswith(".z")}
    assert len(zs) == len(seen) - 1 - len(found.n_layers)
    for name, value in zs.items():
        torch.testing.assert_close(value, seen[found.site(name).spec["path"]])


@pytest.mark.parametrize("family", ALL)
def test_the_branches_add_up_to_the_residual_stream(family: str):
    model, found = wrapped(family)
    values = values_of(family)
    for _, block in blocks(found):
        of = {name.removeprefix(f"{block}."): value for name, value in values.items() if f"{block}." in name}
        order = [name for name in of if not name.startswith(("attn.", "cross_attn.", "mlp."))]
        total = of["resid_pre"]
        for before, name in pairwise(order):
            if name.endswith("_out"):
                if family == "bloom_post_residual":  # adds each branch to the output of its norm instead
                    total = of["ln1" if name == "attn_out" else "ln2"]
                total = total + of[name]
            elif name.startswith("resid"):
                torch.testing.assert_close(of[name], total, msg=lambda text, name=name: f"{name}: {text}")
            elif before != "attn_out":  # GPT-NeoX's parallel branches share their input
                norm = model._module.get_submodule(found.site(f"{block}.{name}").spec["path"])
                torch.testing.assert_close(of[name], norm(total))
                total = of[name] if post_norm(family) else total


@pytest.mark.parametrize("family", ALL)
def test_patterns_are_distributions_and_mix_the_values(family: str):
    _, found = wrapped(family)
    values = values_of(family)
    for name in attentions(found):
        scores, pattern = values[f"{name}.scores"], values[f"{name}.pattern"]
        total = pattern.sum(dim=-1)
        if family in SINKS:
            assert (total < 0.999).all()
        else:
            torch.testing.assert_close(total, torch.ones_like(total))
        assert pattern.std(dim=-1)[..., 1:].max() > 0.05, "degenerate: every key gets the same"
        if family != "falcon_alibi":  # its mask carries the ALiBi bias
            visible = scores.masked_fill(pattern == 0, -torch.inf).softmax(dim=-1)
            torch.testing.assert_close(pattern / total[..., None], visible, rtol=1e-4, atol=1e-5)
        v = values[f"{name}.v"]
        v = v.repeat_interleave(pattern.shape[1] // v.shape[2], dim=2)
        torch.testing.assert_close(values[f"{name}.z"], torch.einsum("bhqk,bkhd->bqhd", pattern, v))


@pytest.mark.parametrize("family", [family for family in ALL if family not in BIASED])
def test_scores_are_scaled_products_of_queries_and_keys(family: str):
    _, found = wrapped(family)
    values = values_of(family)
    for name in attentions(found):
        q, k = values[f"{name}.q"], values[f"{name}.k"]
        k = k.repeat_interleave(q.shape[2] // k.shape[2], dim=2)
        products = torch.einsum("bqhd,bkhd->bhqk", q, k)
        scores = values[f"{name}.scores"]
        scale = (scores * products).sum() / (products * products).sum()
        torch.testing.assert_close(scores, products * scale, rtol=1e-4, atol=1e-5)
        assert scores.std() > 0.05


@pytest.mark.parametrize("family", ALL)
def test_heads_add_up_to_the_output_of_attention(family: str):
    model, found = wrapped(family)
    values = values_of(family)
    for name in attentions(found):
        projection = model._module.get_submodule(found.site(f"{name}.z").spec["path"])
        result = values[f"{name}.result"]
        bias = getattr(projection, "bias", None)
        output = result.sum(dim=2) + (0.0 if bias is None else bias)
        torch.testing.assert_close(output, projection(values[f"{name}.z"].flatten(-2)), rtol=1e-4, atol=1e-5)
        assert result.shape[2] == values[f"{name}.z"].shape[2]


@pytest.mark.parametrize("family", ALL)
def test_the_hidden_layer_leads_to_the_output_of_the_mlp(family: str):
    model, found = wrapped(family)
    values = values_of(family)
    for name in [name.removesuffix(".post") for name in found.sites if name.endswith("mlp.post")]:
        site = found.site(f"{name}.post")
        output = model._module.get_submodule(site.spec["path"])(values[site.name])
        if family.startswith(("gemma", "olmo2")):  # a norm comes in between
            path = found.site(f"{name}_out").spec["path"]
            output = model._module.get_submodule(path)(output)
        torch.testing.assert_close(output, values[f"{name}_out"], rtol=1e-4, atol=1e-5)
        before, after = values[f"{name}.pre"], values[site.name]
        assert before.shape == after.shape
        if family in ("gpt2", "opt", "bart", "gpt_neox"):
            block = model._module.get_submodule(found.paths["blocks"]["decoder"])[0]
            activation = getattr(block, "activation_fn", None) or block.mlp.act
            torch.testing.assert_close(after, activation(before))
        if family == "phi3":
            mlp = model._module.model.layers[site.layer].mlp
            up = mlp.gate_up_proj(values[f"blocks.{site.layer}.ln2"]).chunk(2, dim=-1)[1]
            torch.testing.assert_close(after, mlp.activation_fn(before) * up)


def test_what_was_read_of_falcons_mlp_is_not_changed_later():
    # FalconDecoderLayer adds the attention branch to the MLP's output in place.
    model, found = wrapped("falcon")
    values = values_of("falcon")
    block = model._module.transformer.h[0]
    torch.testing.assert_close(values["blocks.0.mlp_out"], block.mlp(values["blocks.0.ln1"]))
    leaf = values["blocks.0.mlp_out"].clone().requires_grad_(True)
    with model.trace(**tiny_inputs("falcon"), use_cache=False):
        write_site(model, found.site("blocks.0.mlp_out").spec, leaf)
        grad = nnsight.save(torch.autograd.grad(model.output.logits.square().sum(), leaf)[0])
    assert grad.abs().max() > 0
