"""Sites as attributes of the nnsight model, on every architecture."""

from __future__ import annotations

import nnsight
import pytest
import torch

from site_traces import (
    ALL,
    read_all,
    relative,
    values_of,
    wrapped,
)
from tiny_models import tiny_inputs, tiny_model
from whence.core.errors import UnknownNameError
from whence.models.access import resolve
from whence.models.components import architecture, nnsight_names


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
        _ = model.blocks[0].resid_mid
    with pytest.raises(UnknownNameError, match=r"part of transformer\.h\.0 'ln2'"):
        _ = model.blocks[0].ln2


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
