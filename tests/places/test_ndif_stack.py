"""Against a real NDIF server, which scripts/ndif_stack.sh starts: what it sends back is what runs here give."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nnsight
import pytest
import torch
from nnsight import TransformersModel
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.skipif(
    "WHENCE_NDIF_HOST" not in os.environ,
    reason="needs a real NDIF server: scripts/ndif_stack.sh run DIR MODEL... -- python -m pytest",
)

MODELS = [Path(path) for path in os.environ.get("WHENCE_NDIF_MODELS", "").split(":") if path]
IDS = torch.tensor([[1, 5, 9, 12, 7], [1, 8, 30, 22, 11]])
MASK = torch.ones_like(IDS)


@pytest.fixture(params=MODELS, ids=lambda path: path.name)
def path(request):
    return request.param


@pytest.fixture
def trusted():
    """A key whose requests run in the process of the model."""
    return os.environ["WHENCE_NDIF_TRUSTED_KEY"]


@pytest.fixture
def ordinary():
    """A key whose requests run in NDIF's sandbox."""
    return os.environ["WHENCE_NDIF_ORDINARY_KEY"]


def request_to(path, key):
    # Of one's own making, because nnsight would ask the Hub for the name of a folder.
    facts = {"repo_id": str(path), "revision": None, "task": "text-generation"}
    name = f"nnsight.modeling.transformers.TransformersModel:{json.dumps(facts)}"
    return RemoteBackend(name, host=os.environ["WHENCE_NDIF_HOST"], api_key=key)


def embeddings_of(model):
    return model.transformer.wte if hasattr(model, "transformer") else model.model.embed_tokens


def here(path):
    """The logits for the last position, and the derivative of one of them by the embeddings."""
    model = AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)
    embedded = model.get_input_embeddings()(IDS).requires_grad_(True)
    last = model(inputs_embeds=embedded, attention_mask=MASK).logits[:, -1]
    return last.detach(), torch.autograd.grad(last[:, 3].sum(), embedded)[0]


def there(path, key):
    """The same from the server."""
    model = TransformersModel(str(path), task="text-generation")
    embeddings = embeddings_of(model)
    with model.trace(input_ids=IDS, attention_mask=MASK, backend=request_to(path, key)):
        embedded = embeddings.output
        embedded.requires_grad_(True)
        last = model.output.logits[:, -1]
        gradient = nnsight.save(torch.autograd.grad(last[:, 3].sum(), embedded)[0])
        last = nnsight.save(last.detach())
    assert not model.dispatched
    return last, gradient


def test_the_server_knows_its_keys(trusted, ordinary):
    assert nnsight.whoami(trusted)["tags"] == ["trusted"]
    assert nnsight.whoami(ordinary)["tags"] == []


def test_raw_values_and_gradients_of_a_trusted_key(path, trusted):
    torch.testing.assert_close(there(path, trusted), here(path))


def test_raw_values_of_an_ordinary_key(path, ordinary):
    model = TransformersModel(str(path), task="text-generation")
    with model.trace(input_ids=IDS, attention_mask=MASK, backend=request_to(path, ordinary)):
        last = nnsight.save(model.output.logits[:, -1])
    torch.testing.assert_close(last, here(path)[0])


def test_an_ordinary_key_has_no_gradients(path, ordinary):
    with pytest.raises(RemoteError, match="not have been used in the graph"):
        there(path, ordinary)
