"""Servers that are killed, frozen and started again; nothing hangs, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import whence
from conftest import PREFIX
from whence.core.errors import SwarmError

pytestmark = pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning")

TEXT = "the cat sat on the mat"
CONTINUATION = [5, 6, 7]
ENDS = Path(__file__).with_name("swarm_ends.py")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr("whence.models.petals.swarm._PAUSES", (0.0, 0.1, 0.2, 0.2, 0.4))


def gone(pid, seconds=10.0):
    """Whether a process ends in time; one that nobody has collected yet has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
        if not found.stdout.strip() or found.stdout.startswith("Z"):
            return True
        time.sleep(0.1)
    return False


def scores(model):
    return torch.tensor(model.attribute(TEXT, CONTINUATION, method="saliency", progress=False).scores.values)


@pytest.fixture
def local(checkpoint):
    found = whence.load(checkpoint("llama")).attribute(TEXT, CONTINUATION, method="saliency", progress=False)
    return torch.tensor(found.scores.values)


def close(there, local):
    torch.testing.assert_close(there, local, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_killed_between_forward_and_backward(swarms, local):
    servers = [swarms.server([0, 1])]
    servers += [swarms.server([0, 1], [servers[0].address])]
    model = swarms.load([one.address for one in servers])
    killed = []

    def kill_the_one_in_use():
        if not killed:
            killed.append(next(one for one in servers if one.asked))
            killed[0].kill()

    for one in servers:
        one.before_backward = kill_the_one_in_use
    start = time.monotonic()
    close(scores(model), local)
    assert killed
    assert time.monotonic() - start < 15
    asked = len(killed[0].asked)
    close(scores(model), local)
    assert len(killed[0].asked) == asked


def test_killed_without_a_spare_and_started_again(swarms, local, tmp_path, monkeypatch):
    lasting = swarms.server([0])
    server = swarms.server([1], [lasting.address], identity=tmp_path / "key")
    model = swarms.load([lasting.address])
    close(scores(model), local)
    server.kill()
    start = time.monotonic()
    with pytest.raises(SwarmError, match=r"(?s)block 1 of 'tiny'.* pass failed after 6 attempts .* logs say"):
        scores(model)
    assert time.monotonic() - start < 30
    port = int(server.address.split("/")[4])
    server.close()
    monkeypatch.undo()
    swarms.server([1], [lasting.address], identity=tmp_path / "key", port=port)
    close(scores(model), local)


@pytest.mark.parametrize("how", ["freeze", "stall"])
def test_frozen(swarms, local, how):
    lasting = swarms.server([0, 1])
    model = swarms.load([lasting.address], timeout=2.0)
    close(scores(model), local)
    getattr(lasting, how)()
    start = time.monotonic()
    with pytest.raises(SwarmError, match="no answer within 2 seconds"):
        scores(model)
    assert time.monotonic() - start < 12


def test_frozen_with_a_spare(swarms, local):
    servers = [swarms.server([0, 1])]
    servers += [swarms.server([0, 1], [servers[0].address])]
    model = swarms.load([one.address for one in servers], timeout=2.0)
    close(scores(model), local)
    used = next(one for one in servers if one.asked)
    used.stall()
    start = time.monotonic()
    close(scores(model), local)
    assert time.monotonic() - start < 12
    start = time.monotonic()
    close(scores(model), local)
    assert time.monotonic() - start < 2


def test_a_server_that_refuses(swarms):
    server = swarms.server([0, 1])
    model = swarms.load([server.address])

    def refuse():
        raise RuntimeError("out of memory")

    server.before_backward = refuse
    with pytest.raises(SwarmError, match=r"backward pass failed after 6 attempts .*out of memory") as caught:
        scores(model)
    assert "out of memory" in caught.value.details


def test_a_block_without_a_server(swarms):
    server = swarms.server([0])
    with pytest.raises(SwarmError, match=r"no server .* holds block 1 of 'tiny' \(with a server: blocks 0 of 2\)"):
        swarms.load([server.address])


def test_no_peer_answers(swarms):
    server = swarms.server([0, 1])
    model = swarms.load([server.address])
    server.kill()
    start = time.monotonic()
    with pytest.raises(SwarmError, match="none of the peers answers"):
        swarms.load([server.address])
    assert time.monotonic() - start < 10
    assert model.nn._module.swarm.daemon_pid is not None


def test_the_helper_is_started_again(swarms, local):
    server = swarms.server([0, 1])
    model = swarms.load([server.address])
    first = model.nn._module.swarm.daemon_pid
    os.kill(first, signal.SIGKILL)
    assert gone(first)
    close(scores(model), local)
    assert model.nn._module.swarm.daemon_pid not in (None, first)


def test_threads_share_a_swarm(swarms):
    server = swarms.server([0, 1])
    swarm = swarms.load([server.address]).nn._module.swarm
    inputs = [torch.randn(2, 5, 16) for _ in range(6)]
    found = {}
    threads = [
        threading.Thread(target=lambda k=k, x=x: found.update({k: swarm.forward(x, k % 2)}))
        for k, x in enumerate(inputs)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    for k, x in enumerate(inputs):
        torch.testing.assert_close(found[k], server.blocks[k % 2](x), rtol=1e-4, atol=1e-5)


def test_closed_and_dropped(swarms, checkpoint):
    from whence.models.petals.loading import load_petals
    from whence.models.petals.swarm import Swarm

    server = swarms.server([0, 1])
    threads = {one for one in threading.enumerate() if one.name == "whence-petals"}
    model = load_petals(str(checkpoint("llama")), peers=[server.address], dht_prefix=PREFIX)
    swarm = model.nn._module.swarm
    pid = swarm.daemon_pid
    swarm.close()
    swarm.close()
    assert gone(pid)
    with pytest.raises(SwarmError, match=r"was closed; load the model again"):
        scores(model)
    dropped = Swarm([server.address], PREFIX, 2)
    pid = dropped.daemon_pid
    del dropped
    gc.collect()
    assert gone(pid)
    assert {one for one in threading.enumerate() if one.name == "whence-petals"} == threads


def test_closed_in_the_middle_of_a_request(swarms):
    server = swarms.server([0, 1])
    swarm = swarms.load([server.address]).nn._module.swarm
    pid = swarm.daemon_pid
    server.stall()
    threading.Timer(0.5, swarm.close).start()
    start = time.monotonic()
    with pytest.raises(SwarmError, match="closed"):
        swarm.forward(torch.randn(1, 3, 16), 0)
    assert time.monotonic() - start < 5
    assert gone(pid)


def test_no_way_to_end_leaves_the_helper(swarms):
    server = swarms.server([0, 1])
    command = [sys.executable, "-W", "ignore", str(ENDS), server.address, PREFIX]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    ended = dict(line.split() for line in done.stdout.splitlines())
    assert set(ended) == {"return", "exit", "exception", "SIGINT", "SIGTERM", "SIGKILL", "_exit", "fork"}, done.stderr
    assert [way for way, pid in ended.items() if not gone(int(pid))] == []
