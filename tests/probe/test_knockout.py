"""Attention knocked out, against the model's own softmax with those scores at minus infinity."""

from __future__ import annotations

import pytest
import torch
from torch.overrides import TorchFunctionMode

import whence
from removal_rows import Rows, compare, respond, whole
from tiny_models import FAMILIES, VARIANTS, tiny_model

ALL = (*FAMILIES, *VARIANTS)
SOMEWHERE = {"layers": [-1], "heads": [0, -1]}


class Blinded(TorchFunctionMode):
    """Sets scores of attention to minus infinity before the model's own softmax.

    Args:
        blocks: For each call of softmax on attention scores, in order, what to block: [query, key], or None.
        heads: Heads that are blinded, or None for all.
    """

    def __init__(self, blocks, heads=None):
        super().__init__()
        self.blocks, self.heads = list(blocks), heads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        softmaxes = (torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax)
        if func in softmaxes and args[0].dim() == 4:
            block = self.blocks.pop(0)
            if block is not None:
                scores = args[0].clone()
                for head in range(scores.shape[1]) if self.heads is None else self.heads:
                    # What is left of the last axis is a sink, where there is one.
                    part = scores[0, head, :, : block.shape[1]]
                    scores[0, head, :, : block.shape[1]] = part.masked_fill(block, float("-inf"))
                args = (scores, *args[1:])
        return func(*args, **(kwargs or {}))


def blocks_of(config, mask, of, sources, last_only):
    """For each attention, which keys which queries may not look at: masked ones, but for their own feature's."""
    blocked = mask[None] & (of[:, None] != of)
    if not config.is_encoder_decoder:
        count = config.num_hidden_layers
        return [blocked if k == count - 1 or not last_only else None for k in range(count)]
    encoders = getattr(config, "encoder_layers", None) or config.num_layers
    decoders = getattr(config, "decoder_layers", None) or config.num_decoder_layers
    own = (blocked[:sources, :sources],)
    both = blocked[sources:, sources:], mask[:sources].expand(len(mask) - sources, -1)
    stacks = (own, encoders), (both, decoders)
    return [
        block if k == count - 1 or not last_only else None
        for blocks, count in stacks
        for k in range(count)
        for block in blocks
    ]


def knocked_out(hf, where):
    def expected(prompt, continuation, mask, of):
        inputs, first = whole(hf, prompt, continuation)
        with Blinded(blocks_of(hf.config, mask, of, len(prompt), bool(where)), where.get("heads")) as blind:
            logits = hf(**inputs, use_cache=False).logits[0, first:]
        assert not blind.blocks, "some attention was not found"
        return logits

    return expected


@pytest.mark.parametrize("family", ALL)
def test_knocking_out_is_a_mask_on_attention(family):
    hf = tiny_model(family, dtype=torch.float64)
    compare(hf, knocked_out(hf, {}), source_kept=True, method=Rows("knockout"))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mpt", "gpt_oss", "t5", "bart"])
def test_knocking_out_in_some_blocks_and_heads_and_segments(family):
    hf = tiny_model(family, dtype=torch.float64)
    segments = [[1, 2]]
    compare(hf, knocked_out(hf, SOMEWHERE), source_kept=True, segments=segments, method=Rows("knockout", **SOMEWHERE))


def test_knocking_out_works_with_fused_attention():
    texts, masks = [([7, 21, 9], [17, 8])], [torch.tensor([[False, False, False, False], [True, True, False, False]])]
    eager, fused = (
        respond(whence.load(tiny_model("llama", attention=kind)), texts, masks, Rows("knockout"))
        for kind in ("eager", "sdpa")
    )
    torch.testing.assert_close(fused, eager, rtol=1e-5, atol=1e-5)
    assert (eager[0, 1] - eager[0, 0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("gpt2", {"layers": [2]}, r"there is no block 2; the decoder has 2 \(0 to 1\)"),
        ("gpt2", {"heads": [0, 4]}, r"there is no head 4; the decoder has 4 \(0 to 3\)"),
        ("bart", {"heads": [2]}, r"there is no head 2; the decoder has 2"),
        ("t5", {}, "a row leaves nothing of the source, and attention to nothing is not defined"),
    ],
)
def test_what_cannot_be_knocked_out_is_refused(family, options, message):
    model = whence.load(tiny_model(family))
    masks = [torch.ones(1, 4 if model.encoder_decoder else 3, dtype=torch.bool)]
    with pytest.raises(whence.WhenceError, match=message):
        respond(model, [([7, 21], [17, 8])], masks, Rows("knockout", **options))
