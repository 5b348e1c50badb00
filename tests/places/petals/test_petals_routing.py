"""Whom to ask, and what to read of a checkpoint: all that needs no swarm."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from tiny_models import tiny_model
from whence.core.errors import ModelError
from whence.models.petals.blocks import roll, row_offsets
from whence.models.petals.routing import Holder, Routes, describe, read_holders
from whence.models.petals.weights import outer_model, outer_state

ONLINE, JOINING = 2, 1


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_what_the_table_says():
    records = {
        0: {
            "fast": (ONLINE, 2.0, {"torch_dtype": "bfloat16", "quant_type": "nf4", "adapters": ()}),
            "new": (JOINING, 1.0, {}),
            "old": [ONLINE, 1.0],
            "other program": "hello",
        },
        1: {},
    }
    assert read_holders(records) == {0: (Holder("fast", 2.0, "bfloat16", "nf4"), Holder("old", 1.0)), 1: ()}


def test_one_client_keeps_to_one_server_and_many_spread():
    holders = {0: (Holder("a", 3.0), Holder("b", 1.0))}
    chosen = Counter()
    for seed in range(400):
        routes = Routes(str(seed))
        routes.update(holders)
        first = routes.choose(0)
        assert {routes.choose(0) for _ in range(5)} == {first}
        chosen[first.peer] += 1
    assert 250 < chosen["a"] < 350


def test_who_failed_is_avoided_for_longer_and_longer():
    clock = Clock()
    routes = Routes("", clock)
    routes.update({0: (Holder("a"), Holder("b")), 1: (Holder("a"),)})
    first = routes.choose(0).peer
    routes.failed(first)
    assert routes.choose(0).peer != first
    clock.now += 16
    assert routes.choose(0).peer == first
    routes.failed(first)
    clock.now += 16
    assert routes.choose(0).peer != first
    routes.worked(first)
    assert routes.choose(0).peer == first
    routes.failed(first, at_least=100.0)
    clock.now += 99
    assert routes.choose(0).peer != first
    clock.now += 2
    assert routes.choose(0).peer == first


def test_who_failed_is_asked_when_there_is_nobody_else():
    routes = Routes("")
    assert routes.choose(0) is None
    routes.update({0: (Holder("a"),)})
    routes.failed("a")
    assert not routes.has_fresh(0)
    assert routes.choose(0).peer == "a"
    assert routes.choose(1) is None


@pytest.mark.parametrize(("held", "text"), [((), "none"), ((0,), "0"), ((0, 1, 2, 5, 7, 8), "0-2, 5, 7-8")])
def test_ranges_of_blocks(held, text):
    assert describe({block: (Holder("a"),) if block in held else () for block in range(9)}) == text


def test_rows_are_rolled_to_the_left_and_back():
    rows = torch.arange(12.0).view(2, 6, 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    offsets = row_offsets(mask, None)
    assert offsets.tolist() == [2, 0]
    rolled = roll(rows, offsets)
    assert rolled[..., 0].tolist() == [[2, 3, 4, 5, 0, 1], [6, 7, 8, 9, 10, 11]]
    assert torch.equal(roll(rolled, -offsets), rows)
    assert row_offsets(torch.ones(2, 3), torch.arange(3)[None]) is None
    assert row_offsets(mask, (mask.cumsum(1) - 1).clamp_min(0)).tolist() == [2, 0]


@pytest.mark.parametrize(("family", "blocks"), [("llama", "model.layers"), ("bloom", "transformer.h")])
def test_files_of_blocks_are_not_read(tmp_path, family, blocks):
    hf = tiny_model(family)
    hf.save_pretrained(tmp_path, max_shard_size="3KB")
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    outer = {file for key, file in places.items() if not key.startswith(f"{blocks}.")}
    assert outer < set(places.values())
    for file in set(places.values()) - outer:
        (tmp_path / file).unlink()
    with torch.device("meta"):
        skeleton = type(hf)(hf.config)
    found = outer_model(skeleton, blocks, str(tmp_path), family, torch.float32, {})
    own = dict(hf.named_parameters())
    assert all(torch.equal(value, own[name]) for name, value in found.named_parameters())
    assert found.config.num_hidden_layers == hf.config.num_hidden_layers
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_other_kinds_of_checkpoints(tmp_path):
    hf = tiny_model("bloom")
    with torch.device("meta"):
        skeleton = type(hf)(hf.config)
    (tmp_path / "headless").mkdir()
    hf.base_model.save_pretrained(tmp_path / "headless")
    (tmp_path / "pickled").mkdir()
    hf.config.save_pretrained(tmp_path / "pickled")
    torch.save(hf.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    for folder in ("headless", "pickled"):
        found = outer_model(skeleton, "transformer.h", str(tmp_path / folder), folder, torch.float32, {})
        assert torch.equal(found.lm_head.weight, hf.lm_head.weight)
        assert torch.equal(found.transformer.ln_f.weight, hf.transformer.ln_f.weight)


def test_checkpoints_that_lack_weights(tmp_path):
    hf = tiny_model("llama")
    with torch.device("meta"):
        skeleton = type(hf)(hf.config)
    with pytest.raises(ModelError, match=r"nothing could not be loaded.*has no model\.safetensors"):
        outer_model(skeleton, "model.layers", str(tmp_path), "nothing", torch.float32, {})
    state = {key: value for key, value in hf.state_dict().items() if "norm" not in key}
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert set(outer_state(str(tmp_path), "model.layers", {})) == {"model.embed_tokens.weight", "lm_head.weight"}
    with pytest.raises(ModelError, match=r"no weights for model\.norm\.weight"):
        outer_model(skeleton, "model.layers", str(tmp_path), "partly", torch.float32, {})
