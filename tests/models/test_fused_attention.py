"""Sites of attention with a fused implementation, with padding, and where there are no weights at all."""

from __future__ import annotations

import pytest
import torch

from site_traces import (
    FUSED,
    attentions,
    read,
    read_all,
    relative,
    rewritten,
    values_of,
    wrapped,
)
from tiny_models import tiny_inputs
from whence.core.errors import UnsupportedError


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
            read(model, spec, tiny_inputs("qwen2"))
    finally:
        model._module.config._attn_implementation = "eager"
