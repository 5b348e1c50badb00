"""What methods cost, counted in tokens that the model reads; never in seconds."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

import whence
from benchmarks.parity import CALLS
from tiny_models import tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12, 5, 30, 8], [17, 8, 40, 11]
S, T = len(PROMPT), len(CONTINUATION)
N = S + T

# The pass that measures the target is counted here. The endpoints of a path are two rows more, and a comparison of both
# derivative modes another; DeepLIFT's passes have the reference beside the input. Derivatives themselves read no tokens
# in reverse mode.
BOUNDS = {
    "attention": N,
    "attention_rollout": N,
    "alti": N,
    "alti_logit": 2 * N,
    "deeplift": 3 * N,
    "direct_logit": 2 * N,
    "flashtrace": N,
    "information_flow": N,
    "input_x_gradient": 2 * N,
    "integrated_gradients": lambda options: (options["n_steps"] + 3) * N,
    "kernel_shap": lambda options: (options["n_samples"] + 2) * N,
    "lime": lambda options: (options["n_samples"] + 2) * N,
    "none": N,
    "occlusion": (N + 1) * N,
    "saliency": 2 * N,
    "sequential_integrated_gradients": (N + 1) * N,
    "value_norms": N,
    "value_zeroing": (N + 1) * N,
}


@contextmanager
def tokens_read(hf):
    """Count the ids of all rows that the model is given inside of the block."""
    read = [0]

    def count(module, args, kwargs):
        for name in ("input_ids", "decoder_input_ids"):
            if kwargs.get(name) is not None:
                read[0] += kwargs[name].numel()

    handle = hf.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield read
    finally:
        handle.remove()


@pytest.mark.parametrize("method", [name for name in CALLS if name in BOUNDS])
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_tokens_that_the_model_reads(family, method):
    hf = tiny_model(family)
    model = whence.load(hf)
    bound = BOUNDS[method]
    bound = bound if isinstance(bound, int) else bound(CALLS[method])
    # The token with which a decoder begins stays, as it does unless one asks otherwise.
    options = {name: value for name, value in CALLS[method].items() if name != "keep"}
    with tokens_read(hf) as read:
        model.attribute(PROMPT, CONTINUATION, method=method, progress=False, **options)
    # The embedding of a baseline is looked up in a pass over one token, or one for each stack.
    assert 0 < read[0] <= bound + 2


def test_the_count_is_a_count():
    hf = tiny_model("llama")
    with tokens_read(hf) as read:
        whence.load(hf).attribute(PROMPT, CONTINUATION, method="none")
    assert read == [N - 1]
