"""Attention and value zeroing in plain Transformers and PyTorch: the passes that the scores need, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_TINY = 1e-12


def attention(model: Any, ids: Int[Tensor, " position"], steps: int) -> Float[np.ndarray, "step position layer head"]:
    """The weights of every head at the positions that predict the last steps.

    Args:
        model: A decoder with eager attention.
        ids: What it reads: the text without its last token.
        steps: How many tokens are explained.
    """
    with torch.no_grad():
        out = model(input_ids=ids[None], output_attentions=True, use_cache=False, logits_to_keep=1)
    # [layer, head, query, key]
    found = torch.stack([weights[0, :, -steps:] for weights in out.attentions])
    return found.permute(2, 3, 0, 1).double().cpu().numpy()


def value_zeroing(
    model: Any, source: Int[Tensor, " source"], target: Int[Tensor, " target"], rows: int
) -> Float[np.ndarray, "step token layer"]:
    """How far the states of a T5 move when no head gets the value of one token; shares of each step and layer.

    Every block gets the clean input, so that one row removes the same token in all blocks. The states inside the
    encoder are compared as well, as whence does, though they are not returned.

    Args:
        model: A T5 of Transformers.
        source: What the encoder reads.
        target: What the decoder reads.
        rows: Rows per pass.
    """
    stacks = [model.encoder, model.decoder]
    widths = [len(source), len(target)]
    hooks: list[Any] = []
    state: dict[str, Any] = {"clean": [[], []], "moved": [[], []], "gone": None}

    def after_block(stack: int, layer: int, out: Any) -> Any:
        value = out[0] if isinstance(out, tuple) else out
        if state["gone"] is None:
            state["clean"][stack].append(value)
            return None
        low = state["clean"][stack][layer].expand_as(value)
        state["moved"][stack].append(cosine_distance(low, value))
        return (low, *out[1:]) if isinstance(out, tuple) else low

    def without(stream: int, value: Tensor) -> Tensor | None:
        return None if state["gone"] is None else value * ~state["gone"][stream][..., None]

    def watch(stack: int, layer: int, block: Any) -> None:
        hooks.append(block.register_forward_hook(lambda _, __, out: after_block(stack, layer, out)))
        own = block.layer[0].SelfAttention.v
        hooks.append(own.register_forward_hook(lambda _, __, value: without(stack, value)))
        if stack:
            cross = block.layer[1].EncDecAttention.v
            hooks.append(cross.register_forward_hook(lambda _, __, value: without(0, value)))

    for stack, whole in enumerate(stacks):
        for layer, block in enumerate(whole.block):
            watch(stack, layer, block)
    found = []
    try:
        with torch.no_grad():
            encoded = model.encoder(input_ids=source[None]).last_hidden_state
            model.decoder(input_ids=target[None], encoder_hidden_states=encoded, use_cache=False)
            for masks in torch.eye(sum(widths), device=source.device).bool().split(rows):
                state |= {"gone": masks.split(widths, dim=1), "moved": [[], []]}
                many = len(masks)
                model.encoder(input_ids=source.expand(many, -1))
                model.decoder(
                    input_ids=target.expand(many, -1),
                    encoder_hidden_states=encoded.expand(many, -1, -1),
                    use_cache=False,
                )
                found.append(torch.stack(state["moved"][1], dim=-1))
    finally:
        for hook in hooks:
            hook.remove()
    moved = torch.cat(found).transpose(0, 1)
    return (moved / moved.sum(1, keepdim=True)).cpu().numpy()


def cosine_distance(clean: Float[Tensor, "row position unit"], other: Float[Tensor, "row position unit"]) -> Tensor:
    """One minus the cosine, without its cancellation."""
    first, second = (one.float() / one.float().norm(dim=-1, keepdim=True).clamp_min(_TINY) for one in (clean, other))
    return (first - second).square().sum(-1) / 2
