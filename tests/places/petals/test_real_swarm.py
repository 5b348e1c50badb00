"""Real Petals servers, which scripts/petals_swarm.sh starts: the same numbers, and what happens when they go away.

Run without pytest-randomly (``-p no:randomly``): the tests of faults at the end leave fewer servers behind.
Blocks 0 and 1 are with the first server; 2 and 3 with the second and, as a spare, with the third.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

import numpy as np
import pytest

import whence
from benchmarks.parity import CALLS
from whence.core.contract import PLACES, Need
from whence.core.errors import SwarmError
from whence.models.petals.loading import load_petals

PEERS = os.environ.get("WHENCE_PETALS_PEERS", "").split()

pytestmark = [
    pytest.mark.skipif(not PEERS, reason="needs a Petals swarm: scripts/petals_swarm.sh (make test-petals)"),
    pytest.mark.filterwarnings("ignore:path is deprecated:DeprecationWarning"),
]

TEXT = "the cat sat on the mat and then"
GENERATE = {"max_new_tokens": 6}
SERVED = [name for name in whence.METHODS if whence.METHODS[name].needs <= PLACES["petals"]]


@pytest.fixture(scope="module")
def folder():
    return os.environ["WHENCE_PETALS_MODEL"]


def load(folder, **options):
    return load_petals(folder, peers=PEERS, dht_prefix=os.environ["WHENCE_PETALS_PREFIX"], **options)


@pytest.fixture(scope="module")
def here(folder):
    return whence.load(folder)


@pytest.fixture(scope="module")
def there(folder):
    model = load(folder)
    yield model
    model.nn._module.swarm.close()


@pytest.mark.parametrize("layer", [None, "all"])
@pytest.mark.parametrize("method", SERVED)
def test_same_scores(there, here, method, layer):
    if layer is not None and not whence.METHODS[method].layer:
        with pytest.raises(whence.UnsupportedError, match="intermediate site"):
            there.attribute(TEXT, method=method, layer=layer, generate=GENERATE, progress=False)
        return
    options = {"method": method, "layer": layer, "generate": GENERATE, "progress": False, **CALLS[method]}
    # With these options it takes no derivatives; and a deeper site has no tokens to delete.
    derived = Need.GRADIENTS in whence.METHODS[method].needs and method != "sequential_integrated_gradients"
    options |= {"mode": "reverse"} if derived else {}
    options |= {"removal": "replace"} if layer is not None and method == "loo_segments" else {}
    found, local = (model.attribute(TEXT, **options) for model in (there, here))
    assert [token.id for token in found.steps] == [token.id for token in local.steps]
    np.testing.assert_allclose(found.scores.values, local.scores.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", SERVED)
def test_batches_of_different_lengths(there, here, method):
    prompts = [TEXT, "a dog", "the man saw a red house"]
    for one, prompt in zip(
        there.attribute(prompts, method=method, generate=GENERATE, progress=False, **CALLS[method]),
        prompts,
        strict=True,
    ):
        ids = [token.id for token in one.steps if not token.ids] or list(one.steps[0].ids)
        alone = here.attribute(prompt, ids, method=method, progress=False, **CALLS[method])
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5, rtol=1e-5)


def test_long_texts_and_many_columns(there, here):
    """Requests are split and streamed, within the limits of real servers."""
    text, continuation = "the cat sat on the red mat and then " * 30, list(range(5, 45))
    found, local = (model.attribute(text, continuation, method="saliency", progress=False) for model in (there, here))
    np.testing.assert_allclose(found.scores.values, local.scores.values, atol=1e-5, rtol=1e-4)


def test_what_the_servers_say(there):
    assert (there.info["dtype"], there.info["quantisation"]) == ("float32", None)
    assert {len(holders) for holders in there.nn._module.swarm.holders().values()} == {1, 2}


def test_connections_stay_on_this_machine(there):
    there.attribute(TEXT, [5], method="saliency", progress=False)
    pids = [int(one) for one in os.environ["WHENCE_PETALS_PIDS"].split()]
    inside = {pid for pid, group in processes() if group in pids} | {there.nn._module.swarm.daemon_pid}
    lines = subprocess.run(["ss", "-Htuanp"], capture_output=True, text=True, check=True).stdout.splitlines()
    own = [line.split() for line in lines if any(f"pid={pid}," in line for pid in inside)]
    assert own
    assert {local.rpartition(":")[0] for *_, local, _, _ in own} == {"127.0.0.1"}


def processes():
    """Every process and its group."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid="], capture_output=True, text=True, check=True).stdout
    return [(int(pid), int(group)) for pid, group in (line.split() for line in found.splitlines())]


class TestFaults:
    """In this order, after all the rest: each leaves fewer servers behind."""

    def test_killed_in_the_middle_with_a_spare_online(self, folder, here, monkeypatch):
        model = load(folder, timeout=30.0)
        swarm = model.nn._module.swarm
        first = swarm._routes.choose(2).peer
        number = next(k for k, address in enumerate(PEERS) if address.endswith(first))
        group = int(os.environ["WHENCE_PETALS_PIDS"].split()[number])
        backward, killed = swarm.backward, []

        def kill_then(hidden, grad, block):
            if not killed:
                killed.append(group)
                os.killpg(group, signal.SIGKILL)
            return backward(hidden, grad, block)

        monkeypatch.setattr(swarm, "backward", kill_then)
        start = time.monotonic()
        found = model.attribute(TEXT, method="integrated_gradients", generate=GENERATE, progress=False)
        assert killed
        assert time.monotonic() - start < 60
        local = here.attribute(TEXT, method="integrated_gradients", generate=GENERATE, progress=False, mode="reverse")
        np.testing.assert_allclose(found.scores.values, local.scores.values, atol=1e-5, rtol=1e-5)
        assert swarm._routes.choose(2).peer != first
        swarm.close()

    def test_the_last_one_freezes(self, folder):
        model = load(folder, timeout=4.0)
        first = model.nn._module.swarm._routes.choose(0).peer
        number = next(k for k, address in enumerate(PEERS) if address.endswith(first))
        group = int(os.environ["WHENCE_PETALS_PIDS"].split()[number])
        os.killpg(group, signal.SIGSTOP)
        try:
            start = time.monotonic()
            with pytest.raises(SwarmError, match="no answer within 4 seconds"):
                model.attribute(TEXT, [5], method="saliency", progress=False)
            assert time.monotonic() - start < 20
        finally:
            os.killpg(group, signal.SIGCONT)
        model.attribute(TEXT, [5], method="saliency", progress=False)
        model.nn._module.swarm.close()

    def test_the_last_one_is_killed(self, folder):
        model = load(folder, timeout=30.0)
        for pid in os.environ["WHENCE_PETALS_PIDS"].split():
            try:
                os.killpg(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        start = time.monotonic()
        with pytest.raises(SwarmError, match=r"block 0 of .* failed after \d attempts?"):
            model.attribute(TEXT, [5], method="saliency", progress=False)
        assert time.monotonic() - start < 60
        model.nn._module.swarm.close()
