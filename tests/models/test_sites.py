"""Sites inside traces: what is read is what the model computes, and what is written is what it goes on with."""

from __future__ import annotations

from functools import cache
from typing import Any

import nnsight
import pytest
import torch
from tiny_models import EAGER_ONLY, FAMILIES, VARIANTS, tiny_inputs, tiny_model
from whence.core.errors import ModelError, UnknownNameError, UnsupportedError
from whence.models.access import read_site, resolve, write_site
from whence.models.components import Architecture, architecture, nnsight_names

ALL = FAMILIES + VARIANTS
FUSED = tuple(family for family in ALL if family not in EAGER_ONLY)
# Their scores have a bias by position or a soft cap on top of the products of queries and keys.
BIASED = ("bloom", "bloom_post_residual", "mpt", "falcon_alibi", "t5", "mt5", "t5_tied", "gemma2")
SINKS = ("gpt_oss",)


@cache
def wrapped(family: str, dtype: torch.dtype = torch.float32, attention: str = "eager") -> tuple[Any, Architecture]:
    """A model as `whence.load` makes it."""
    model = tiny_model(family, dtype, attention=attention).requires_grad_(False)
    found = architecture(model)
    rename, envoys = nnsight_names(found)
    return nnsight.NNsight(model, rename=rename, envoys=envoys), found


def read_all(model: Any, found: Architecture, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    specs = {name: site.spec for name, site in found.sites.items()}
    with model.trace(**inputs, use_cache=False):
        values = {}
        for name, spec in specs.items():
            values[name] = read_site(model, spec)
        nnsight.save(values)
    return values


@cache
def values_of(family: str, attention: str = "eager") -> dict[str, torch.Tensor]:
    return read_all(*wrapped(family, attention=attention), tiny_inputs(family))


def rewritten(model: Any, spec: Any, inputs: dict[str, Any], noise: float) -> torch.Tensor:
    """Logits after reading a site and writing it back, with noise added."""
    with model.trace(**inputs, use_cache=False):
        value = read_site(model, spec)
        torch.manual_seed(0)
        write_site(model, spec, value + noise * torch.randn_like(value) if noise else value)
        logits = nnsight.save(model.output.logits)
    return logits


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


def blocks(found: Architecture) -> list[tuple[str, str]]:
    """The stack and the prefix of every block."""
    return [
        (stack, f"{stack}.blocks.{layer}" if found.encoder_decoder else f"blocks.{layer}")
        for stack, count in found.n_layers.items()
        for layer in range(count)
    ]


def attentions(found: Architecture) -> list[str]:
    return [name.removesuffix(".z") for name in found.sites if name.endswith(".z")]


# Reading


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
        for name in order[1:]:
            if name.endswith("_out"):
                if family == "bloom_post_residual":  # this BLOOM adds each branch to the norm's output instead
                    total = of["ln1" if name == "attn_out" else "ln2"]
                total = total + of[name]
            elif name.startswith("ln") and order.index(name) > order.index("resid_mid" if "resid_mid" in of else name):
                if order[order.index(name) - 1] in ("resid_mid", "resid_mid_cross", "mlp_out"):
                    path = found.site(f"{block}.{name}").spec["path"]
                    normed = model._module.get_submodule(path)(total)
                    torch.testing.assert_close(of[name], normed)
                    if _post_norm(family):
                        total = normed
            elif name.startswith("resid"):
                torch.testing.assert_close(of[name], total, msg=lambda text, name=name: f"{name}: {text}")


def _post_norm(family: str) -> bool:
    return family in ("bart", "marian", "opt_post_norm")


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


# Fused attention


@pytest.mark.parametrize("family", FUSED)
def test_fused_attention_gives_the_same_sites(family: str):
    eager, fused = values_of(family), values_of(family, attention="sdpa")
    if family == "falcon_alibi":
        # transformers adds the ALiBi bias twice in eager mode and once in fused mode: compare the fused
        # pattern with the fused output only.
        pattern, v = fused["blocks.0.attn.pattern"], fused["blocks.0.attn.v"]
        torch.testing.assert_close(fused["blocks.0.attn.z"], torch.einsum("bhqk,bkhd->bqhd", pattern, v))
        return
    for name, value in eager.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("family", FUSED)
def test_fused_attention_can_be_edited(family: str):
    model, found = wrapped(family, attention="sdpa")
    plain = model._module(**tiny_inputs(family), use_cache=False).logits
    for name in attentions(found):
        for part in ("q", "k", "v", "scores", "pattern"):
            spec = found.site(f"{name}.{part}").spec
            assert relative(rewritten(model, spec, tiny_inputs(family), 0.0), plain) < 1e-5, name
            assert relative(rewritten(model, spec, tiny_inputs(family), 1.0), plain) > 1e-4, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["gpt2", "mistral", "falcon", "opt", "t5", "marian"])
def test_padding_on_the_left_is_kept(family: str, attention: str):
    model, found = wrapped(family, attention=attention)
    inputs = tiny_inputs(family)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["attention_mask"][0, :3] = 0
    plain = model._module(**inputs, use_cache=False).logits
    for name in attentions(found):
        spec = found.site(f"{name}.pattern").spec
        assert relative(rewritten(model, spec, inputs, 0.0), plain) < 1e-5, name
    values = read_all(model, found, inputs)
    for name in attentions(found):
        if "decoder" not in name or "cross" in name:
            assert values[f"{name}.pattern"][0, :, 3:, :3].abs().max() == 0


def test_an_implementation_without_weights_says_what_to_do():
    model, found = wrapped("qwen2", dtype=torch.float64)
    spec = found.site("blocks.0.attn.pattern").spec
    model._module.config._attn_implementation = "flash_attention_2"
    try:
        with pytest.raises(UnsupportedError, match='attn_implementation="eager"'):
            with model.trace(**tiny_inputs("qwen2"), use_cache=False):
                read_site(model, spec)
    finally:
        model._module.config._attn_implementation = "eager"


# Writing


@pytest.mark.parametrize("family", ALL)
def test_writing_back_what_was_read_changes_nothing(family: str):
    model, found = wrapped(family)
    inputs = tiny_inputs(family)
    plain = values_of(family)["logits"]
    for name, site in found.sites.items():
        assert relative(rewritten(model, site.spec, inputs, 0.0), plain) < 1e-5, name


@pytest.mark.parametrize("family", ALL)
def test_writing_anything_else_changes_the_logits(family: str):
    model, found = wrapped(family)
    inputs = tiny_inputs(family)
    plain = values_of(family)["logits"]
    for name, site in found.sites.items():
        assert relative(rewritten(model, site.spec, inputs, 1.0), plain) > 1e-4, name


@pytest.mark.parametrize("family", ALL)
def test_cuts_are_cuts(family: str):
    # Two inputs that agree on everything but the ids give the same logits once the cut is the same.
    model, found = wrapped(family)
    inputs = tiny_inputs(family)
    other = {**inputs, "input_ids": inputs["input_ids"].flip(1)}
    if "decoder_input_ids" in inputs:
        other["decoder_input_ids"] = inputs["decoder_input_ids"].flip(1)
    values = values_of(family)
    for name, site in found.sites.items():
        if not site.cut or site.stack == "encoder":
            continue
        given = {**other, "input_ids": inputs["input_ids"]} if found.encoder_decoder else other
        with model.trace(**given, use_cache=False):
            write_site(model, site.spec, values[name])
            logits = nnsight.save(model.output.logits)
        assert relative(logits, values["logits"]) < 1e-5, name


@pytest.mark.parametrize("family", [f for f in ALL if "blocks.0.resid_mid" in wrapped(f)[1].sites])
def test_writing_resid_mid_reaches_both_the_norm_and_the_sum(family: str):
    model, found = wrapped(family)
    site = found.site("blocks.0.resid_mid")
    torch.manual_seed(3)
    value = torch.randn_like(values_of(family)[site.name])
    rest = [found.site(n) for n in ("blocks.0.ln1", "blocks.0.ln2", "blocks.0.mlp_out") if n in found.sites]
    rest = [s for s in rest if s.order > site.order]
    post = found.site("blocks.0.resid_post").spec
    with model.trace(**tiny_inputs(family), use_cache=False):
        write_site(model, site.spec, value)
        after = {}
        for later in rest:
            after[later.name] = read_site(model, later.spec)
        after["resid_post"] = read_site(model, post)
        nnsight.save(after)
    norm = "blocks.0.ln1" if _post_norm(family) else "blocks.0.ln2"
    base = value
    if norm in after:
        normed = model._module.get_submodule(found.site(norm).spec["path"])(value)
        torch.testing.assert_close(after[norm], normed)
        base = normed if _post_norm(family) or family == "bloom_post_residual" else value
    total = base + after["blocks.0.mlp_out"]
    if _post_norm(family):
        total = model._module.get_submodule(found.site("blocks.0.ln2").spec["path"])(total)
    torch.testing.assert_close(after["resid_post"], total)


@pytest.mark.parametrize("family", ALL)
def test_derivatives_flow_through_what_is_written(family: str):
    # float64, against central differences; eager attention computes some softmaxes in float32 all the same.
    model, found = wrapped(family, dtype=torch.float64)
    inputs = tiny_inputs(family)
    start = "decoder." if found.encoder_decoder else ""
    names = [f"{start}blocks.0.{name}" for name in ("resid_pre", "attn.k", "attn.pattern", "attn.z", "resid_mid")]
    for name in [name for name in names if name in found.sites]:
        spec = found.site(name).spec
        with model.trace(**inputs, use_cache=False):
            leaf = read_site(model, spec).detach().requires_grad_(True)
            write_site(model, spec, leaf)
            grad = nnsight.save(torch.autograd.grad(model.output.logits.square().sum(), leaf)[0])
            value = nnsight.save(leaf.detach())
        torch.manual_seed(0)
        direction = torch.randn_like(value)
        ends = []
        for step in (1e-3, -1e-3):
            moved = value + step * direction
            with model.trace(**inputs, use_cache=False):
                write_site(model, spec, moved)
                ends.append(model.output.logits.square().sum())
        slope = (ends[0] - ends[1]) / 2e-3
        assert float((grad * direction).sum()) == pytest.approx(float(slope), rel=2e-3), name


def test_reads_are_in_the_graph_of_the_model():
    model, found = wrapped("llama")
    inputs = tiny_inputs("llama")
    for name in ("blocks.1.resid_pre", "blocks.1.attn.v", "blocks.1.attn.z", "blocks.1.mlp.post"):
        spec = found.site(name).spec
        with model.trace(**inputs, use_cache=False):
            embed = model.embed.output.requires_grad_(True)
            model.embed.output = embed
            value = read_site(model, spec)
            grad = nnsight.save(torch.autograd.grad(model.output.logits.sum(), value)[0])
        assert grad.abs().max() > 0, name


def test_computed_sites_are_in_the_graph_once_written_back():
    model, found = wrapped("llama")
    for name in ("attn.scores", "attn.pattern", "attn.result"):
        site = found.site(f"blocks.0.{name}")
        assert site.computed
        with model.trace(**tiny_inputs("llama"), use_cache=False):
            model.embed.output = model.embed.output.requires_grad_(True)
            value = read_site(model, site.spec)
            write_site(model, site.spec, value)
            grad = nnsight.save(torch.autograd.grad(model.output.logits.sum(), value)[0])
        assert grad.abs().max() > 0, name


def test_a_zeroed_key_is_not_looked_at():
    model, found = wrapped("gpt2")
    pattern = found.site("blocks.0.attn.pattern").spec
    scores = found.site("blocks.0.attn.scores").spec
    z = found.site("blocks.0.attn.z").spec
    with model.trace(**tiny_inputs("gpt2"), use_cache=False):
        value = read_site(model, scores).clone()
        value[..., 2] = -1e9
        write_site(model, scores, value)
        from_scores = nnsight.save(read_site(model, z))
    with model.trace(**tiny_inputs("gpt2"), use_cache=False):
        value = read_site(model, pattern).clone()
        value[..., 2] = 0
        write_site(model, pattern, value / value.sum(dim=-1, keepdim=True))
        from_pattern = nnsight.save(read_site(model, z))
    torch.testing.assert_close(from_scores[:, 3:], from_pattern[:, 3:])
    assert not torch.allclose(from_scores[:, 3:], values_of("gpt2")["blocks.0.attn.z"][:, 3:])


def test_a_line_that_is_not_there_is_an_error():
    model, found = wrapped("llama")
    spec = {**found.site("blocks.0.resid_mid").spec, "text": "hidden_states = residual * hidden_states"}
    with pytest.raises(ModelError, match=r"blocks\.0\.resid_mid: LlamaDecoderLayer\.forward has no line"):
        with model.trace(**tiny_inputs("llama"), use_cache=False):
            read_site(model, spec)


# The names users see


@pytest.mark.parametrize("family", ALL)
def test_names_of_the_nnsight_model_are_the_sites(family: str):
    model, found = wrapped(family)
    names = [name for name in found.sites if name != "logits"]
    if family == "opt":
        # OPT's second norm sees batch and position as one axis, also under the name that nnsight gives it.
        names = [name for name in names if ".ln2" not in name]
    with model.trace(**tiny_inputs(family), use_cache=False):
        values = {}
        for name in names:
            value = model
            for part in name.split("."):
                value = value[int(part)] if part.isdigit() else getattr(value, part)
            values[name] = value.output if isinstance(value, nnsight.Envoy) else value
        nnsight.save(values)
    for name, value in values.items():
        torch.testing.assert_close(value, values_of(family)[name], rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "opt", "t5", "mpt"])
def test_names_of_the_nnsight_model_can_be_assigned(family: str):
    model, found = wrapped(family)
    stack = model.decoder if found.encoder_decoder else model
    with model.trace(**tiny_inputs(family), use_cache=False):
        block = stack.blocks[0]
        block.attn.v = block.attn.v * 0
        z = nnsight.save(block.attn.z)
        block.mlp.post = block.mlp.post * 0 + 1
        mlp_out = nnsight.save(block.mlp_out)
        block.resid_post = block.resid_post * 2
        doubled = nnsight.save(stack.blocks[1].resid_pre)
        logits = nnsight.save(model.output.logits)
    assert z.abs().max() == 0
    torch.testing.assert_close(mlp_out, mlp_out[:1, :1].expand_as(mlp_out))
    assert doubled.abs().max() > 0
    assert relative(logits, values_of(family)["logits"]) > 1e-3


def test_native_names_keep_working():
    model, found = wrapped("t5")
    attention = model._module.encoder.block[0].layer[0].SelfAttention
    envoy = model.encoder.block[0].layer[0].SelfAttention
    assert envoy.E_q._module is attention.q
    assert resolve(model, found.site("encoder.blocks.0.attn.z").spec["path"])._module is attention.o
    gpt2, _ = wrapped("gpt2")
    assert gpt2.blocks is gpt2.transformer.h
    assert gpt2.blocks[1].ln1 is gpt2.transformer.h[1].ln_1


def test_a_name_that_a_block_does_not_have_is_an_error():
    model, _ = wrapped("gptj")
    with pytest.raises(UnknownNameError, match=r"site of transformer\.h\.0 'resid_mid'"):
        with model.trace(**tiny_inputs("gptj"), use_cache=False):
            nnsight.save(model.blocks[0].resid_mid)


@pytest.mark.parametrize("family", ALL)
def test_wrapping_leaves_the_module_tree_and_the_logits_alone(family: str):
    model = tiny_model(family)
    inputs = tiny_inputs(family)
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    with torch.no_grad():
        before = model(**inputs, use_cache=False).logits
        rename, envoys = nnsight_names(architecture(model))
        traced = nnsight.NNsight(model, rename=rename, envoys=envoys)
        read_all(traced, architecture(model), inputs)
        after = model(**inputs, use_cache=False).logits
    assert [name for name, _ in model.named_modules(remove_duplicate=False)] == names
    assert torch.equal(before, after)
