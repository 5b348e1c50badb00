"""What nobody asks for is not computed: the unembedding where only internal values are wanted."""

from __future__ import annotations

import pytest

import whence
from tiny_models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(("method", "positions"), [("attention", [1]), ("value_zeroing", [1, 1]), ("saliency", [3, 3])])
def test_positions_that_get_logits(method, positions):
    hf = tiny_model("llama")
    model = whence.load(hf, tokenizer=tiny_tokenizer("llama"))
    seen = []
    hook = hf.lm_head.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    try:
        model.attribute([5, 6, 7, 8], [9, 10, 11], method=method)
    finally:
        hook.remove()
    assert seen == positions
