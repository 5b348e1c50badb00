"""Models whose weights are elsewhere, over a server in this process that has never heard of whence."""

from __future__ import annotations

import pickletools
import sys
import warnings

import numpy as np
import pytest
import torch
import zstandard
from loopback import Loopback

import whence
from benchmarks.parity import CALLS as METHOD_CALLS
from tiny_models import tiny_model, tiny_tokenizer
from whence.models.ndif.loading import load_ndif

TEXT = "the cat sat on the mat"
GENERATE = {"max_new_tokens": 5}
OPTIONS = {"t5": {"num_decoder_layers": 2}}
CALLS = [(name, {"progress": False, **options}) for name, options in METHOD_CALLS.items()] + [
    ("integrated_gradients", {"n_steps": "auto", "target": "logit"}),
    ("input_x_gradient", {"layer": "all", "baseline": "mean"}),
    ("input_x_gradient", {"segments": [[0, 1, 2], [3]], "sides": "source", "mode": "auto"}),
    ("gradient_shap", {"baseline": ["mean", 11], "stdev": 0.2, "layer": "all", "n_samples": 4}),
    ("sequential_integrated_gradients", {"exact": False, "n_steps": 3, "mode": "reverse"}),
    ("jacobian_scope", {"scope": "fisher", "rank": 2}),
    ("smoothgrad", {"base": "input_x_gradient", "n_samples": 3, "segments": [[0, 1, 2], [3]], "sides": "source"}),
    ("input_x_gradient", {"target": "contrast_prob_diff", "contrast": [5, 6], "step_scores": ["pcxmi"]}),
    ("input_x_gradient", {"target": "contrast_prob_diff", "contrast": {"continuation": [5, 6], "evaluate": "own"}}),
    ("occlusion", {"target": "kl_divergence:top_k=5", "contrast": {"source": "the dog sat on the mat"}}),
    ("deeplift", {"target": "contrast_logits_diff", "contrast": [5, 6]}),
    ("integrated_gradients", {"target": "mc_dropout_prob_avg", "rate": 0.2, "n_passes": 2, "n_steps": 2}),
]


def made(family):
    return tiny_model(family, **OPTIONS.get(family, {}))


@pytest.fixture(scope="module", params=["gpt2", "llama", "bloom", "t5"])
def folder(request, tmp_path_factory):
    where = tmp_path_factory.mktemp("checkpoints") / request.param
    made(request.param).save_pretrained(where)
    tiny_tokenizer(request.param).save_pretrained(where)
    return where


@pytest.fixture
def server(folder):
    return Loopback(made(folder.name), tiny_tokenizer(folder.name), str(folder))


@pytest.fixture
def model(folder, server):
    return load_ndif(str(folder), transport=server, attn_implementation="eager")


@pytest.fixture
def here(folder):
    return whence.load(folder, attn_implementation="eager")


@pytest.mark.parametrize(("method", "options"), CALLS)
def test_same_scores_in_at_most_four_requests(model, here, server, method, options):
    there = model.attribute(TEXT, method=method, generate=GENERATE, **options)
    # Generation, the baseline's rows, the clean run, the derivatives; and a run of the contrast's own.
    constant = isinstance(options.get("contrast"), dict) and "source" in options["contrast"]
    assert server.traffic.requests <= 4 + constant
    assert server.traffic.sent < 100_000
    local = here.attribute(TEXT, method=method, generate=GENERATE, **options)
    assert [token.id for token in there.steps] == [token.id for token in local.steps]
    np.testing.assert_allclose(there.scores.values, local.scores.values, atol=1e-5, rtol=1e-5)
    assert there.info["engine"] == local.info["engine"]
    assert [(check.name, check.passed) for check in there.checks] == [
        (check.name, check.passed) for check in local.checks
    ]
    assert there.info["place"] == "ndif"
    assert there.info["server"] == "http://loopback"


def test_nothing_is_loaded_here(model):
    assert {parameter.device.type for parameter in model.nn._module.parameters()} == {"meta"}
    assert model.tokenizer is not None
    assert model.dtype == torch.float32


def test_printing_a_model_asks_nobody(model, server):
    assert "place='ndif'" in repr(model)
    assert server.traffic.requests == 0


def test_batches_and_estimates(model, here):
    prompts = [TEXT, "a dog"]
    together = model.attribute(prompts, method="saliency", generate=GENERATE)
    for one, prompt in zip(together, prompts, strict=True):
        alone = here.attribute(prompt, [token.id for token in one.steps], method="saliency")
        np.testing.assert_allclose(one.scores.values, alone.scores.values, atol=1e-5, rtol=1e-4)
    assert model.estimate(TEXT, [5, 6], method="saliency").mode == "reverse"


def test_what_travels_is_source_and_not_bytecode(model, server):
    """Bytecode of one Python version does not run on another."""
    for method, options in METHOD_CALLS.items():
        model.attribute(TEXT, method=method, generate=GENERATE, **options)
    assert server.blobs
    for blob in server.blobs:
        plain = zstandard.ZstdDecompressor().stream_reader(blob).read()
        names = {str(argument) for _, argument, _ in pickletools.genops(plain) if isinstance(argument, str)}
        assert "_load_function" in names
        assert not names & {"_make_function", "CodeType", "dataclasses", "jaxtyping"}


def test_a_trace_of_ones_own(model, here):
    import nnsight

    two_stacks = here.encoder_decoder
    results = []
    for one in (model, here):
        with one.trace(TEXT):
            blocks = one.decoder.blocks if two_stacks else one.blocks
            pattern = nnsight.save(blocks[1].attn.pattern)
            blocks[1].mlp_out = blocks[1].mlp_out * 0.5
            logits = nnsight.save(one.output.logits)
        results.append((pattern, logits))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_step_function_of_ones_own(model, here):
    own = whence.StepFunction("margin", margin, "logits")
    a, b = (one.attribute(TEXT, [5, 6, 7], target=own).scores.values for one in (model, here))
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def margin(inputs):
    top = torch.topk(inputs.logits, 2, dim=-1).values
    return top[..., 0] - top[..., 1]


def test_a_registered_step_function_of_ones_own(model, here, tmp_path, monkeypatch):
    """A file as the command line takes it: the decorator stands above the function that is sent."""
    from whence.cli.plugins import load_plugins
    from whence.step_functions import STEP_FUNCTIONS

    monkeypatch.setattr(STEP_FUNCTIONS, "_added", {})
    file = tmp_path / "sent_to_a_place.py"
    file.write_text(PLUGIN, encoding="utf-8")
    load_plugins([file])
    try:
        options = {"target": "second", "places": 2, "step_scores": ["second"]}
        a, b = (one.attribute(TEXT, [5, 6, 7], **options) for one in (model, here))
    finally:
        del sys.modules["sent_to_a_place"]
    np.testing.assert_allclose(a.scores.values, b.scores.values, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(a.step_scores["second"], b.step_scores["second"], atol=1e-5, rtol=1e-4)


PLUGIN = """
import whence
from torch import topk


@whence.step_function(unit="logits", merge="sum")
def second(inputs, places=1):
    return topk(inputs.logits, places + 1, dim=-1).values[..., places]
"""


def broken(inputs):
    raise ZeroDivisionError("in the middle of the job")


def test_an_error_there_is_one_error_here_and_the_client_stays_usable(model, here):
    bad = whence.StepFunction("bad", broken, "")
    with pytest.raises(whence.RemoteError, match="ZeroDivisionError: in the middle of the job"):
        model.attribute(TEXT, [5, 6], target=bad)
    a, b = (one.attribute(TEXT, [5, 6]).scores.values for one in (model, here))
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_sent_says_so(model):
    import threading

    lock = threading.Lock()

    def locked(inputs):
        with lock:
            return margin(inputs)

    own = whence.StepFunction("locked", locked, "")
    with pytest.raises(whence.RemoteError, match=r"cannot be sent.*plain function"):
        model.attribute(TEXT, [5, 6], target=own)


def test_an_interrupt_leaves_the_client_usable(model, server, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.attribute(TEXT, [5, 6])
    assert np.isfinite(model.attribute(TEXT, [5, 6]).scores.values[0, 0])


@pytest.fixture
def untrusted(folder):
    server = Loopback(made(folder.name), tiny_tokenizer(folder.name), str(folder), tags=())
    return load_ndif(str(folder), transport=server, attn_implementation="eager")


@pytest.mark.parametrize("method", ["saliency", "input_x_gradient", "integrated_gradients"])
def test_without_gradients_it_is_said_before_the_run(untrusted, method):
    with pytest.raises(whence.UnsupportedError, match="derivative='finite'"):
        untrusted.attribute(TEXT, method=method, generate=GENERATE)
    assert untrusted.remote.transport.traffic.requests == 0


@pytest.mark.parametrize("method", ["input_x_gradient", "integrated_gradients"])
def test_finite_differences_need_no_gradients(untrusted, here, method):
    options = {"method": method, "target": "logprob", "derivative": "finite", "generate": GENERATE}
    out = untrusted.attribute(TEXT, **options)
    assert untrusted.remote.transport.traffic.requests <= 4
    assert out.info["engine"]["mode"] == "finite"
    local = here.attribute(TEXT, **options)
    np.testing.assert_allclose(out.scores.values, local.scores.values, atol=1e-3, rtol=1e-3)


def test_what_takes_no_gradient_needs_none(untrusted, here):
    options = {"method": "sequential_integrated_gradients", "generate": GENERATE}
    out = untrusted.attribute(TEXT, **options)
    np.testing.assert_allclose(out.scores.values, here.attribute(TEXT, **options).scores.values, atol=1e-5, rtol=1e-4)
    with pytest.raises(whence.UnsupportedError, match="gradients"):
        untrusted.attribute(TEXT, exact=False, **options)


def test_other_versions_there_are_warned_of_once(folder, server, monkeypatch):
    plain = server.get

    def other(path, key=None):
        found = plain(path)
        if path == "/env":
            found = {**found, "packages": {**found["packages"], "transformers": "4.0.0", "leftpad": "1.0"}}
        return found

    monkeypatch.setattr(server, "get", other)
    with pytest.warns(UserWarning, match=r"transformers .* here, 4\.0\.0 there"):
        model = load_ndif(str(folder), transport=server)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.attribute(TEXT, [5, 6])


def test_weights_that_are_no_numbers_are_named(folder):
    hf = made(folder.name)
    name, parameter = next((n, p) for n, p in hf.named_parameters() if ".1." in n)
    with torch.no_grad():
        parameter.fill_(float("nan"))
    server = Loopback(hf, tiny_tokenizer(folder.name), str(folder))
    model = load_ndif(str(folder), transport=server)
    with pytest.raises(whence.ModelError, match=name.replace(".", r"\.")):
        model.attribute(TEXT, [5, 6])
