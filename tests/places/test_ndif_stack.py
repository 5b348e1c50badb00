"""Against a real NDIF server, which scripts/ndif_stack.sh starts: what it sends back is what runs here give."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import whence
from benchmarks.parity import CALLS, call_of
from benchmarks.parity_models import NAMES

pytestmark = pytest.mark.skipif(
    "WHENCE_NDIF_HOST" not in os.environ,
    reason="needs a real NDIF server: make test-ndif starts one",
)

# The server may have more models, for the tutorial.
SERVED = [Path(path) for path in os.environ.get("WHENCE_NDIF_MODELS", "").split(":") if path]
MODELS = [path for path in SERVED if path.name in NAMES]
TEXT = "the cat sat on the mat because"
GENERATE = {"max_new_tokens": 4}


@pytest.fixture(params=MODELS, ids=lambda path: path.name)
def path(request):
    return request.param


def load(path, key):
    """The model there, with one of the server's two keys: TRUSTED, or ORDINARY, whose jobs run in a sandbox."""
    return whence.load(
        path, remote=os.environ["WHENCE_NDIF_HOST"], api_key=os.environ[f"WHENCE_NDIF_{key}_KEY"], timeout=300
    )


@pytest.mark.parametrize("method", list(CALLS))
def test_same_scores_in_at_most_four_requests(path, method):
    model, options = load(path, "TRUSTED"), call_of(method)
    there = model.attribute(TEXT, generate=GENERATE, **options)
    assert model.remote.transport.traffic.requests <= 4
    here = whence.load(path).attribute(TEXT, generate=GENERATE, **options)
    assert [token.id for token in there.steps] == [token.id for token in here.steps]
    np.testing.assert_allclose(there.scores.values, here.scores.values, atol=1e-5)
    assert there.info["engine"] == here.info["engine"]
    assert there.verified == here.verified


def test_batches_and_layers(path):
    prompts, texts = [TEXT, "a dog"], [[9, 12, 7], [15, 20]]
    options = {"method": "saliency", "layer": "all"}
    there = load(path, "TRUSTED").attribute(prompts, texts, **options)
    here = whence.load(path).attribute(prompts, texts, **options)
    for a, b in zip(there, here, strict=True):
        np.testing.assert_allclose(a.scores.values, b.scores.values, atol=1e-5)


def test_a_trace_of_ones_own(path):
    import nnsight
    import torch

    results = []
    for model in (load(path, "TRUSTED"), whence.load(path)):
        with model.trace(TEXT):
            pattern = nnsight.save(model.blocks[1].attn.pattern)
            model.blocks[1].mlp_out = model.blocks[1].mlp_out * 0.5
            logits = nnsight.save(model.output.logits)
        results.append((pattern, logits))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients"])
def test_without_gradients(path, method):
    """NDIF runs the jobs of an ordinary key in another process than the weights are in."""
    model, options = load(path, "ORDINARY"), {**call_of(method), "n_steps": 4}
    if method == "input_x_gradient":
        del options["n_steps"]
    with pytest.raises(whence.UnsupportedError, match="derivative='finite'"):
        model.attribute(TEXT, generate=GENERATE, **options)
    assert model.remote.transport.traffic.requests == 0
    there = model.attribute(TEXT, generate=GENERATE, derivative="finite", **options)
    assert model.remote.transport.traffic.requests <= 4
    here = whence.load(path).attribute(TEXT, generate=GENERATE, derivative="finite", **options)
    np.testing.assert_allclose(there.scores.values, here.scores.values, atol=1e-3)


def test_errors_of_a_job_keep_their_last_line(path):
    def broken(inputs):
        raise ZeroDivisionError("in the middle of the job")

    own = whence.StepFunction("broken", broken, "")
    with pytest.raises(whence.RemoteError, match="ZeroDivisionError: in the middle of the job"):
        load(path, "TRUSTED").attribute(TEXT, [9, 12], target=own)


def test_keys_that_are_not_known(path):
    host = os.environ["WHENCE_NDIF_HOST"]
    with pytest.raises(whence.RemoteError, match="NDIF_API_KEY"):
        whence.load(path, remote=host, api_key="not even a key")
    unknown = whence.load(path, remote=host, api_key="00000000-0000-4000-8000-000000000099")
    with pytest.raises(whence.RemoteError, match=r"Invalid API key.*NDIF_API_KEY"):
        unknown.attribute(TEXT, [9, 12], derivative="finite")


def test_a_model_that_the_server_does_not_have(path, tmp_path):
    from tiny_models import tiny_model, tiny_tokenizer

    # A folder that is here and was never there.
    tiny_model("gpt2").save_pretrained(tmp_path)
    tiny_tokenizer("gpt2").save_pretrained(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    model = load(tmp_path, "TRUSTED")
    with pytest.raises(whence.RemoteError):
        model.attribute(TEXT, [9, 12])
