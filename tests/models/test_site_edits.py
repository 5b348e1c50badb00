"""Writing sites in a trace: what is written is what the model goes on with."""

from __future__ import annotations

import nnsight
import pytest
import torch

from site_traces import (
    ALL,
    post_norm,
    read,
    relative,
    rewritten,
    values_of,
    wrapped,
)
from tiny_models import tiny_inputs
from whence.core.errors import ModelError
from whence.models.access import read_site, write_site


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
    rest = sorted((s for s in rest if s.order > site.order), key=lambda s: s.order)
    post = found.site("blocks.0.resid_post").spec
    with model.trace(**tiny_inputs(family), use_cache=False):
        write_site(model, site.spec, value)
        after = {}
        for later in rest:
            after[later.name] = read_site(model, later.spec)
        after["resid_post"] = read_site(model, post)
        nnsight.save(after)
    norm = "blocks.0.ln1" if post_norm(family) else "blocks.0.ln2"
    base = value
    if norm in after:
        normed = model._module.get_submodule(found.site(norm).spec["path"])(value)
        torch.testing.assert_close(after[norm], normed)
        base = normed if post_norm(family) or family == "bloom_post_residual" else value
    total = base + after["blocks.0.mlp_out"]
    if post_norm(family):
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
        for step in (2e-4, -2e-4):
            moved = value + step * direction
            with model.trace(**inputs, use_cache=False):
                write_site(model, spec, moved)
                ends.append(model.output.logits.square().sum())
        slope = float(ends[0] - ends[1]) / 4e-4
        assert abs(float((grad * direction).sum()) - slope) < 5e-3 * float(grad.norm()), name


@pytest.mark.parametrize("family", ["llama", "bloom", "phi3", "opt", "falcon", "gpt_neo", "gemma2"])
def test_what_is_read_is_in_the_graph_of_the_model_unless_it_is_computed(family: str):
    # Falcon's own eager pattern is in the graph; the site is marked for its fused attention.
    model, found = wrapped(family, attention="sdpa" if family == "falcon" else "eager")
    for name in [name for name in found.sites if name.startswith("blocks.0.")]:
        site = found.site(name)
        for back in (False, True):
            with model.trace(**tiny_inputs(family), use_cache=False):
                model.embed.output = model.embed.output.requires_grad_(True)
                value = read_site(model, site.spec)
                if back:
                    write_site(model, site.spec, value)
                total = model.output.logits.square().sum()
                grad = nnsight.save(torch.autograd.grad(total, value, allow_unused=True)[0])
            assert (grad is not None) == (back or not site.computed), (name, back)
            assert grad is None or grad.abs().max() > 0, name


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
        read(model, spec, tiny_inputs("llama"))
