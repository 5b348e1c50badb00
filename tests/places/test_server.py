"""``whence serve-model`` as a process that has never heard of whence: the same scores, and every way to fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import torch
from server_process import bare_environment, gone, serve, start

import whence
from benchmarks.parity import CALLS
from quantised_models import pack, quantised_by_transformers
from tiny_models import tiny_model, tiny_tokenizer

TEXT = "the cat sat on the mat"
IDS = [5, 6, 7]
GENERATE = {"max_new_tokens": 4}
KEY = "a-key-that-nobody-guesses"


def checkpoint(where, family):
    tiny_model(family, **({"num_decoder_layers": 2} if family == "t5" else {})).save_pretrained(where)
    tiny_tokenizer(family).save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return tmp_path_factory.mktemp("environment")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("checkpoint"), "gpt2")


@pytest.fixture(scope="module")
def server(environment, folder):
    with serve(environment, folder, "--request-mb", "1", "--result-mb", "6") as running:
        yield running


@pytest.fixture
def model(server, folder):
    return whence.load(folder, remote=server.url, timeout=60)


def slow(inputs):
    import time

    end = time.monotonic() + 30
    while time.monotonic() < end:
        time.sleep(0.01)
    return inputs.logits[..., 0]


def talkative(inputs):
    print("said in the job")  # noqa: T201
    return inputs.logits[..., 0]


def step_function(fn):
    return whence.StepFunction(fn.__name__, fn, "")


def test_whence_cannot_be_imported_there(environment):
    import subprocess

    python = bare_environment(environment)
    made = subprocess.run([str(python), "-c", "import whence"], capture_output=True, text=True, cwd=environment)
    assert made.returncode != 0
    assert "No module named 'whence'" in made.stderr
    assert subprocess.run([str(python), "-c", "import nnsight"], cwd=environment, check=False).returncode == 0


@pytest.mark.parametrize("method", list(whence.METHODS))
def test_same_scores(model, folder, method):
    before = model.remote.transport.traffic.requests
    there = model.attribute(TEXT, method=method, generate=GENERATE, **CALLS[method])
    assert model.remote.transport.traffic.requests - before <= 4
    here = whence.load(folder).attribute(TEXT, method=method, generate=GENERATE, **CALLS[method])
    assert [token.id for token in there.steps] == [token.id for token in here.steps]
    np.testing.assert_allclose(there.scores.values, here.scores.values, atol=1e-5)


@pytest.mark.parametrize("family", ["t5"])
def test_encoder_decoder_models_are_served_too(environment, tmp_path, family):
    folder = checkpoint(tmp_path / family, family)
    with serve(environment, folder) as running:
        model = whence.load(folder, remote=running.url)
        there = model.attribute(TEXT, method="integrated_gradients", n_steps=4, generate=GENERATE)
    here = whence.load(folder).attribute(TEXT, method="integrated_gradients", n_steps=4, generate=GENERATE)
    np.testing.assert_allclose(there.scores.values, here.scores.values, atol=1e-5, rtol=1e-5)


def test_weights_of_4_bits(environment, tmp_path):
    """Also those of a model that bitsandbytes had packed for its CPU, and again on a CPU for which it would."""
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "exact")
    hf = quantised_by_transformers(tmp_path / "exact")
    pack(hf)
    hf.save_pretrained(tmp_path / "packed")
    tiny_tokenizer("llama").save_pretrained(tmp_path / "packed")
    with serve(environment, tmp_path / "packed") as running:
        there = whence.load(tmp_path / "packed", remote=running.url).attribute(TEXT, IDS)
    here = whence.load(tmp_path / "packed", device="cpu").attribute(TEXT, IDS)
    np.testing.assert_allclose(there.scores.values, here.scores.values, atol=1e-5, rtol=1e-5)


def test_an_error_in_a_job_is_told_and_the_next_job_runs(model):
    def broken(inputs):
        raise ZeroDivisionError("in the middle of the job")

    with pytest.raises(whence.RemoteError, match="ZeroDivisionError: in the middle of the job") as caught:
        model.attribute(TEXT, IDS, target=step_function(broken))
    assert "Traceback" in caught.value.details
    assert "broken" in caught.value.details
    assert np.isfinite(model.attribute(TEXT, IDS).scores.values[0, 0])


def test_what_a_job_prints_appears_here(model, capsys):
    model.attribute(TEXT, IDS, target=step_function(talkative), method="saliency")
    assert "said in the job" in capsys.readouterr().out


def test_a_job_that_takes_too_long_is_ended_and_the_next_one_runs(environment, folder):
    # A server of its own: on a busy machine, what other tests ask may take longer than this.
    with serve(environment, folder, "--timeout", "4") as running:
        model = whence.load(folder, remote=running.url, timeout=60)
        with pytest.raises(whence.RemoteError, match="exceeded the execution timeout of 4s"):
            model.attribute(TEXT, IDS, target=step_function(slow))
        assert np.isfinite(model.attribute(TEXT, IDS).scores.values[0, 0])


def test_a_client_that_leaves_frees_the_server(folder, server):
    patient = whence.load(folder, remote=server.url, timeout=60)
    hasty = whence.load(folder, remote=server.url, timeout=1)
    with pytest.raises(whence.RemoteError, match=r"did not finish within 1 s.*timeout="):
        hasty.attribute(TEXT, IDS, target=step_function(slow))
    assert np.isfinite(patient.attribute(TEXT, IDS).scores.values[0, 0])


def test_two_clients_at_once_get_their_own_answers(folder, server):
    results = {}

    def ask(number):
        model = whence.load(folder, remote=server.url, timeout=60)
        results[number] = model.attribute([5 + number, 9, 10], IDS, method="saliency").scores.values

    # nnsight keeps the caller's frame for a moment, so each client has a thread of its own.
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    here = whence.load(folder)
    for number in range(3):
        expected = here.attribute([5 + number, 9, 10], IDS, method="saliency").scores.values
        np.testing.assert_allclose(results[number], expected, atol=1e-5)


def test_results_that_do_not_fit_a_message_are_fetched(model):
    import nnsight

    with model.trace(TEXT):
        found = nnsight.save(model.output.logits.new_ones(1, 1_200_000))
    assert found.shape == (1, 1_200_000)
    assert bool((found == 1).all())


def test_results_and_requests_that_are_too_large_are_refused(model):
    import nnsight

    with pytest.raises(whence.RemoteError, match="6 MiB at most"), model.trace(TEXT):
        found = nnsight.save(torch.rand(2_000_000))
    large = torch.rand(400_000)
    with pytest.raises(whence.RemoteError, match="1 MiB at most"), model.trace(TEXT):
        found = nnsight.save(large * 2)  # noqa: F841 - what is saved has a name


def test_another_model_is_refused(environment, server, tmp_path):
    other = checkpoint(tmp_path / "other", "llama")
    model = whence.load(other, remote=server.url)
    with pytest.raises(whence.RemoteError, match="Could not deploy this model"):
        model.attribute(TEXT, IDS)


def test_a_damaged_payload_is_refused(server, model):
    transport = model.remote.transport
    with pytest.raises(whence.RemoteError, match="payload could not be read"):
        transport.submit(model.remote.model_key, b"no payload at all", {}, lambda status, text: None)
    assert httpx.post(f"{server.url}/request", data={"data": "{}"}, files={"blob": b"x"}).status_code == 400
    assert np.isfinite(model.attribute(TEXT, IDS).scores.values[0, 0])


def test_clients_of_nnsight_itself_are_served(server, folder):
    """Also those that ask again and again instead of listening."""
    import nnsight
    from nnsight.intervention.backends.remote import RemoteBackend

    model = whence.load(folder, remote=server.url)
    nn = model.remote.plain
    ids = torch.tensor([IDS])
    with nn.trace(input_ids=ids, backend=RemoteBackend(model.remote.model_key, host=server.url)):
        logits = nnsight.save(nn.output.logits)
    with torch.no_grad():
        expected = tiny_model("gpt2")(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    backend = RemoteBackend(model.remote.model_key, host=server.url, blocking=False)
    with nn.trace(input_ids=ids, backend=backend):
        logits = nnsight.save(nn.output.logits)
    found, end = None, time.monotonic() + 30
    while found is None and time.monotonic() < end:
        found = backend()
    torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-5)


def test_keys(environment, folder, tmp_path, monkeypatch):
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({KEY: {"email": "someone@example.org", "tags": []}}))
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    with serve(environment, folder, "--keys", str(keys)) as running:
        assert httpx.get(f"{running.url}/ping").text == "pong"
        assert httpx.get(f"{running.url}/status").status_code == 401
        with pytest.raises(whence.RemoteError, match=r"401.*NDIF_API_KEY"):
            whence.load(folder, remote=running.url)
        with pytest.raises(whence.RemoteError, match=r"403.*Invalid API key"):
            whence.load(folder, remote=running.url, api_key="b" * len(KEY))
        model = whence.load(folder, remote=running.url, api_key=KEY)
        assert np.isfinite(model.attribute(TEXT, IDS).scores.values[0, 0])
        monkeypatch.setenv("NDIF_API_KEY", KEY)
        again = whence.load(folder, remote=running.url)
        model.remote.transport._headers.clear()
        with pytest.raises(whence.RemoteError, match=r"refused the connection \(403\).*NDIF_API_KEY"):
            model.attribute(TEXT, IDS)
        assert np.isfinite(again.attribute(TEXT, IDS).scores.values[0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "give keys"),
        (("--keys", "KEYS"), "at least 16"),
        (("--host", "192.0.2.1", "--keys", "GOOD"), "assign requested address"),
    ],
)
def test_a_server_that_may_not_start_says_why(environment, folder, tmp_path, options, message):
    (tmp_path / "KEYS").write_text('{"short": {}}')
    (tmp_path / "GOOD").write_text(json.dumps({KEY: {}}))
    options = [str(tmp_path / one) if one in ("KEYS", "GOOD") else one for one in options]
    server = start(environment, folder, *options)
    assert server.process.wait(60) != 0
    server._reader.join(5)
    assert message in "\n".join(server.lines)
    server.process.stdout.close()


def test_killed_frozen_restarted(environment, folder):
    """A server that dies or hangs in the middle of a job is an error here, in bounded time; then it is back."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serve(environment, folder, "--port", str(port)) as running:
        model = whence.load(folder, remote=running.url, timeout=60)
        # What a client asks once, so that the next job is the slow one.
        assert model.dtype == torch.float32
        lost = pytest.raises(whence.RemoteError, match=r"connection.*(lost|closed)")
        with lost, once_a_job_runs(running, running.process.pid, signal.SIGKILL):
            model.attribute(TEXT, IDS, target=step_function(slow))
        assert gone(running.process.pid) or running.process.poll() is not None
    with pytest.raises(whence.RemoteError, match=r"no server answers.*serve-model"):
        model.attribute(TEXT, IDS)
    with serve(environment, folder, "--port", str(port)) as running:
        first = model.attribute(TEXT, IDS).scores.values
        frozen = whence.load(folder, remote=running.url, timeout=2)
        os.kill(running.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(whence.RemoteError, match="did not finish within 2 s"):
                frozen.attribute(TEXT, IDS)
        finally:
            os.kill(running.process.pid, signal.SIGCONT)
        np.testing.assert_allclose(frozen.attribute(TEXT, IDS).scores.values, first)


@contextmanager
def once_a_job_runs(server, process, number):
    """Send a signal to a process as soon as a job runs on a server, unless the ``with`` block ends before."""
    over = threading.Event()

    def watch():
        while not over.wait(0.05):
            if busy(server.url):
                os.kill(process, number)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def busy(url):
    """Whether a job of this server runs: it is then told its place in the queue."""
    return httpx.get(f"{url}/status").json().get("cluster", {}).get("running", 0) > 0


def test_an_interrupt_in_the_middle_leaves_both_sides_usable(model, server):
    # What a client asks once, so that the next job is the slow one.
    assert model.dtype == torch.float32
    # Where tests run in the background, a shell may have had Python ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), once_a_job_runs(server, os.getpid(), signal.SIGINT):
            model.attribute(TEXT, IDS, target=step_function(slow))
    finally:
        signal.signal(signal.SIGINT, before)
    assert np.isfinite(model.attribute(TEXT, IDS).scores.values[0, 0])


def test_a_truncated_answer_is_an_error(folder):
    """A server that stops in the middle of its answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def answer():
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: application/json\r\n\r\n{")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(whence.RemoteError, match=r"connection to .* was lost"):
            whence.load(folder, remote=url)
        thread.join(10)


@pytest.mark.parametrize(
    ("url", "message"),
    [("https://127.0.0.1:{port}", r"does not speak TLS.*http://"), ("http://127.0.0.1:1", "no server answers")],
)
def test_wrong_addresses(folder, server, url, message):
    port = server.url.rpartition(":")[2]
    with pytest.raises(whence.RemoteError, match=message):
        whence.load(folder, remote=url.format(port=port))
