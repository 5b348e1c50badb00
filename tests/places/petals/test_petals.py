"""Models whose blocks are in a swarm: the same numbers as here."""

from __future__ import annotations

import functools
import logging
import sys

import numpy as np
import pytest
import torch

import whence
from conftest import PREFIX
from tiny_models import DECODER_ONLY, tiny_model
from whence.core.contract import Need
from whence.core.errors import InputError, SwarmError, UnknownNameError, UnsupportedError
from whence.models.components import architecture

# importlib.resources.path, which hivemind finds its daemon with, is deprecated in some versions of Python only.
pytestmark = pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning")

TEXT = "the cat sat on the mat"
GENERATE = {"max_new_tokens": 5}
CALLS = [
    ("llama", "saliency", {}),
    ("llama", "input_x_gradient", {}),
    ("llama", "integrated_gradients", {}),
    ("llama", "saliency", {"layer": "all"}),
    ("llama", "integrated_gradients", {"n_steps": 4, "layer": "blocks.1.resid_pre"}),
    ("llama", "input_x_gradient", {"segments": [[0, 1, 2], [3]], "sides": "source", "baseline": "mean"}),
    ("bloom", "saliency", {"layer": "all"}),
    ("bloom", "integrated_gradients", {"n_steps": 4}),
]
# What does not depend on the architecture is tried on one.
LLAMA = pytest.mark.parametrize("pair", ["llama"], indirect=True)


class Pair:
    """A model in a swarm of two servers, and the same model here."""

    def __init__(self, swarms, checkpoint, family):
        first = swarms.server([0], family=family)
        self.servers = [first, swarms.server([1], [first.address], family=family)]
        self.there = swarms.load([first.address], family=family)
        self.here = whence.load(checkpoint(family))
        self.hf = tiny_model(family)

    @property
    def traffic(self):
        return self.there.nn._module.swarm.traffic


@pytest.fixture(scope="module")
def pairs(lasting, checkpoint):
    return functools.cache(functools.partial(Pair, lasting, checkpoint))


@pytest.fixture(params=["llama", "bloom"])
def pair(request, pairs):
    return pairs(request.param)


@pytest.mark.parametrize(("pair", "method", "options"), CALLS, indirect=["pair"])
def test_same_scores(pair, method, options):
    there = pair.there.attribute(TEXT, method=method, generate=GENERATE, progress=False, **options)
    local = pair.here.attribute(TEXT, method=method, generate=GENERATE, progress=False, mode="reverse", **options)
    assert [token.id for token in there.steps] == [token.id for token in local.steps]
    np.testing.assert_allclose(there.scores.values, local.scores.values, atol=1e-5, rtol=1e-5)
    # One comparison here needs forward mode, which a swarm does not have.
    own = {check.name: check.passed for check in local.checks}
    assert {check.name: check.passed for check in there.checks}.items() <= own.items()
    assert there.info["place"] == "petals"
    assert there.info["engine"]["mode"] == "reverse"


@pytest.mark.parametrize(("pair", "method"), [("llama", "input_x_gradient"), ("bloom", "saliency")], indirect=["pair"])
def test_batches_of_different_lengths(pair, method):
    prompts = [TEXT, "a dog", "the man saw"]
    together = pair.there.attribute(prompts, method=method, generate=GENERATE, progress=False)
    for one, prompt in zip(together, prompts, strict=True):
        given = [token.id for token in one.steps]
        alone = pair.here.attribute(prompt, given, method=method, progress=False, mode="reverse")
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5, rtol=1e-5)


@LLAMA
def test_all_columns_go_out_in_one_request_per_block(pair):
    continuation = [5, 6, 7, 8]
    for server in pair.servers:
        server.asked.clear()
    before = pair.traffic.requests
    pair.there.attribute(TEXT, continuation, method="saliency", progress=False)
    backward = [asked for server in pair.servers for asked in server.asked if asked[0] == "backward"]
    assert [shape[0] for _, _, shape in backward] == [4, 4]
    # One pass to measure and one to differentiate, each through two blocks, and the gradients.
    assert pair.traffic.requests - before == 6


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_in_batches_twice_through_one_graph(pair, padded):
    hf = pair.there.nn._module
    ids = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 7, 8, 9]] if padded else [[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
    mask = (ids > 0).long()
    columns = torch.randn(3, 2, 5, hf.config.vocab_size, generator=torch.Generator().manual_seed(0))
    columns = columns * mask[..., None]
    found = []
    for model in (hf, pair.hf):
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
        at_once = torch.autograd.grad(logits, embeds, columns, is_grads_batched=True, retain_graph=True)[0]
        one = torch.autograd.grad(logits, embeds, columns[1], retain_graph=True)[0]
        mapped = torch.vmap(lambda v, y=logits, x=embeds: torch.autograd.grad(y, x, v, retain_graph=True)[0])(columns)
        found.append([logits * mask[..., None], at_once, one, mapped])
    for there, local in zip(*found, strict=True):
        torch.testing.assert_close(there, local, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[0][3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0][1][1], found[0][2], rtol=1e-4, atol=1e-4)


@LLAMA
def test_large_tensors_are_streamed_and_split(pair):
    server, swarm = pair.servers[0], pair.there.nn._module.swarm
    hidden = torch.randn(80, 60, 16, generator=torch.Generator().manual_seed(0))
    expected = server.blocks[0](hidden)
    server.asked.clear()
    torch.testing.assert_close(swarm.forward(hidden, 0), expected, rtol=1e-4, atol=1e-5)
    assert {shape[0] for _, _, shape in server.asked} == {17, 12}
    server.max_tokens, swarm._limit = 1 << 20, 1 << 20
    before = pair.traffic.sent, pair.traffic.received
    hidden = torch.randn(400, 60, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(swarm.forward(hidden, 0), server.blocks[0](hidden), rtol=1e-4, atol=1e-5)
    server.max_tokens, swarm._limit = 2048, 1024
    assert server.asked[-1][2] == (400, 60, 16)
    size = hidden.numel() * 4
    assert size < pair.traffic.sent - before[0] < size + 4096
    assert size < pair.traffic.received - before[1] < size + 4096


@LLAMA
def test_a_servers_own_limit_is_found(pair):
    server, swarm = pair.servers[1], pair.there.nn._module.swarm
    server.max_tokens, limit = 20, swarm._limit
    hidden = torch.randn(9, 7, 16)
    torch.testing.assert_close(swarm.forward(hidden, 1), server.blocks[1](hidden), rtol=1e-4, atol=1e-5)
    assert swarm._limit <= 21
    with pytest.raises(SwarmError, match=r"a text of 30 tokens .* --max_batch_size"):
        swarm.forward(torch.randn(1, 30, 16), 1)
    server.max_tokens, swarm._limit = 2048, limit


def test_bfloat16_travels_as_it_is():
    from whence.models.petals.wire import decode, encode

    tensor = torch.randn(2, 3, 4).bfloat16()
    message = encode(tensor)
    assert len(message.buffer) == 2 * tensor.numel()
    torch.testing.assert_close(decode(message, tensor.shape), tensor, rtol=0, atol=0)


def test_only_the_boundaries_of_blocks(pair):
    assert [site.name for site in pair.there.sites()] == [
        *("embed", "blocks.0.resid_pre", "blocks.0.resid_post", "blocks.1.resid_pre", "blocks.1.resid_post"),
        *("ln_final", "unembed", "logits"),
    ]
    with pytest.raises(UnsupportedError, match=r"blocks\.0\.attn\.q: a Petals swarm .* resid_post"):
        pair.there.attribute(TEXT, [5], method="saliency", layer="blocks.0.attn.q")
    with pytest.raises(UnsupportedError, match="a Petals swarm"), pair.there.trace(TEXT):
        pair.there.blocks[0].attn.pattern.save()
    with pytest.raises(UnsupportedError, match="a Petals swarm"), pair.there.trace(TEXT):
        pair.there.blocks[1].mlp_out.save()
    with pytest.raises(UnknownNameError, match=r"blocks\.0\.resid_post"):
        pair.there.architecture.site("blocks.0.resid_psot")
    assert pair.there.provides == {Need.LOGITS, Need.EMBEDDINGS, Need.GRADIENTS}
    assert Need.ATTENTION in pair.there.lacks


@LLAMA
def test_forward_mode_asks_nobody(pair):
    # Few features and many steps: cheaper in forward mode, where there is one.
    before = pair.traffic.requests
    out = pair.there.attribute(
        "cat", list(range(5, 15)), method="input_x_gradient", segments=[[0]], sides="source", progress=False
    )
    assert out.info["engine"]["mode_note"]
    assert pair.traffic.requests - before <= 12
    before = pair.traffic.requests
    with pytest.raises(UnsupportedError, match="forward mode is not possible here"):
        pair.there.attribute(TEXT, [5, 6], method="input_x_gradient", mode="forward", progress=False)
    assert pair.traffic.requests - before <= 8


def test_an_edit_in_a_trace(pair):
    import nnsight

    found = []
    for model in (pair.there, pair.here):
        with model.trace(TEXT):
            model.blocks[1].resid_pre = model.blocks[0].resid_post * 0.5
            found.append(nnsight.save(model.output.logits))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@LLAMA
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "holes"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, "mask of one's own"),
        ({"use_cache": True}, "use_cache=False"),
    ],
)
def test_what_servers_cannot_be_told(pair, options, message):
    with pytest.raises(UnsupportedError, match=message):
        pair.there.nn._module(input_ids=torch.tensor([[5, 6, 7]]), **options)


@LLAMA
def test_what_the_swarm_says_goes_into_the_result(pair):
    assert pair.there.info["dtype"] == "float32"
    assert pair.there.info["quantisation"] is None
    assert pair.there.info["dht_prefix"] == PREFIX
    assert pair.there.dtype == torch.float32
    assert "place='petals'" in repr(pair.there)


def test_second_derivatives_are_refused(pair):
    hidden = torch.randn(1, 3, 16, requires_grad=True)
    block = pair.there.nn._module.get_submodule(pair.there.architecture.paths["blocks"]["decoder"])[0]
    made = block(hidden)
    (grad,) = torch.autograd.grad((made[0] if isinstance(made, tuple) else made).sum(), hidden, create_graph=True)
    with pytest.raises(UnsupportedError, match="second derivatives"):
        grad.sum().backward()


def test_other_dtypes_are_told(swarms):
    server = swarms.server([0, 1], said={"torch_dtype": "bfloat16", "quant_type": "nf4"})
    with pytest.warns(UserWarning, match=r"blocks in bfloat16, .* in float32"):
        model = swarms.load([server.address], dtype=torch.float32)
    assert (model.info["dtype"], model.info["quantisation"]) == ("bfloat16", "nf4")
    # Without a wish, this process computes in what the servers do.
    assert swarms.load([server.address]).dtype == torch.bfloat16


@LLAMA
def test_the_rest_of_the_process_is_left_alone(pair):
    assert logging.getLevelName(logging.WARNING) == "WARNING"
    assert not logging.getLogger("hivemind").handlers
    own = "file_descriptor" if sys.platform == "linux" else "file_system"
    assert torch.multiprocessing.get_sharing_strategy() == own


@pytest.mark.parametrize(
    ("family", "as_tuple"),
    [(name, name in ("bloom", "falcon", "mpt")) for name in DECODER_ONLY if name not in ("gptj", "gpt_neo", "gpt2")],
)
def test_what_blocks_return_is_found_by_trying(checkpoint, family, as_tuple):
    from whence.models.petals.loading import returns_tuple
    from whence.models.petals.weights import outer_model

    whole = tiny_model(family)
    blocks = architecture(whole).paths["blocks"]["decoder"]
    hf = outer_model(whole, blocks, str(checkpoint(family)), family, torch.float32, {})
    assert returns_tuple(hf, blocks) == as_tuple


@pytest.mark.parametrize("peers", ["/ip4/127.0.0.1/tcp/1", ["127.0.0.1:31337"], ["/ip4/127.0.0.1/tcp/31337"], []])
def test_addresses_that_are_none(swarms, peers):
    with pytest.raises(InputError, match=r"peers.*/ip4/10\.0\.0\.1/tcp/31337/p2p/"):
        swarms.load(peers)


def test_names_of_a_model_in_the_swarm(checkpoint):
    from whence.models.petals.loading import default_prefix, load_petals

    def made(name, kind):
        return default_prefix(name, name, tiny_model(kind).config)

    assert made("meta-llama/Llama-3.1-8B", "llama") == "Llama-3-1-8B-hf"
    assert made("meta-llama/Llama-2-7b-hf", "llama") == "Llama-2-7b-hf"
    assert made("bigscience/bloom-7b1", "bloom") == "bigscience/bloom-7b1-petals"
    assert made("tiiuae/falcon-180B", "falcon") == "falcon-180B"
    with pytest.raises(InputError, match="dht_prefix="):
        made("Qwen/Qwen2-7B", "qwen2")
    with pytest.raises(InputError, match="dht_prefix="):
        load_petals(str(checkpoint("llama")), peers=["/ip4/127.0.0.1/tcp/1/p2p/x"])
    with pytest.raises(InputError, match="no dots"):
        load_petals(str(checkpoint("llama")), peers=["/ip4/127.0.0.1/tcp/1/p2p/x"], dht_prefix="llama-3.1")
    with pytest.raises(UnsupportedError, match="encoder"):
        load_petals(str(checkpoint("t5")), peers=["/ip4/127.0.0.1/tcp/1/p2p/x"], dht_prefix="t5")
