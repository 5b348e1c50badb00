"""Step functions of one's own: what is tried out, where they work, and what the errors say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from tiny_models import tiny_model
from whence.step_functions import STEP_FUNCTIONS

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40, 11]


@pytest.fixture
def registered(monkeypatch):
    """The registry, left as it was."""
    monkeypatch.setattr(STEP_FUNCTIONS, "_added", {})
    return STEP_FUNCTIONS


def lead(inputs, places=1):
    best = inputs.logits.topk(places + 1, dim=-1).values
    return best[..., 0] - best[..., places]


def test_the_decorator_registers_and_returns_the_function(registered):
    found = whence.step_function(unit="logits", merge="sum")(lead)
    assert found is lead
    model = whence.load(tiny_model("llama", dtype=torch.float64))
    out = model.attribute(PROMPT, CONTINUATION, target="lead", places=2, step_scores=["lead", "lead:places=3"])
    logits = tiny_model("llama", dtype=torch.float64)(torch.tensor([PROMPT + CONTINUATION[:-1]])).logits[0, 4:]
    best = logits.sort(-1, descending=True).values.detach().numpy()
    np.testing.assert_allclose(out.step_scores["lead"], best[:, 0] - best[:, 2], rtol=1e-5)
    np.testing.assert_allclose(out.step_scores["lead:places=3"], best[:, 0] - best[:, 3], rtol=1e-5)
    assert out.info["target_options"] == {"places": 2}
    assert out.verified
    # It adds up, so a span can be explained; other methods take it as well.
    spans = model.attribute(PROMPT, CONTINUATION, target="lead", places=2, steps="whole", method="occlusion")
    single = model.attribute(PROMPT, CONTINUATION, target="lead", places=2, method="occlusion")
    np.testing.assert_allclose(spans.source.values[0], single.source.values.sum(0), rtol=1e-4, atol=1e-5)


def test_a_function_as_it_is():
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, target=lead)
    assert out.target == "lead"
    named = whence.StepFunction("lead", lead, "logits")
    assert out.scores.equals(model.attribute(PROMPT, CONTINUATION, target=named).scores)


def test_a_function_that_compares(registered):
    @whence.step_function(needs=["contrast"], merge="sum")
    def gap(inputs):
        other = inputs.contrast.logits.gather(-1, inputs.contrast.target_ids[..., None])[..., 0]
        return inputs.logits.gather(-1, inputs.target_ids[..., None])[..., 0] - other

    model = whence.load(tiny_model("t5"))
    given = {"contrast": [17, 9, 40, 11]}
    own = model.attribute(PROMPT, CONTINUATION, target="gap", **given)
    built_in = model.attribute(PROMPT, CONTINUATION, target="contrast_logits_diff", **given)
    np.testing.assert_allclose(own.scores.values, built_in.scores.values, atol=1e-6)


def summed(inputs):
    return inputs.logits.sum()


def text(inputs):
    return "a number"


def mixing(inputs):
    return inputs.logits.softmax(1)[..., 0]


def counting(inputs):
    return inputs.logits.argmax(-1).float()


def endless(inputs):
    return inputs.logits[..., 0] / 0


def failing(inputs):
    raise KeyError("names")


def without_default(inputs, places):
    return inputs.logits[..., places]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (summed, r"'summed' returned a tensor of shape \(\) for logits of shape \(2, 3, 7\)"),
        (text, "'text' returned 'a number'"),
        (mixing, "'mixing' mixes rows or steps"),
        (counting, "'counting' has no gradient.*differentiable=False"),
        (endless, "'endless' returned NaN or infinity"),
        (failing, "'failing' raised KeyError: 'names'"),
        (without_default, "'places' needs a default"),
    ],
)
def test_what_is_no_step_function_is_refused(registered, function, message):
    with pytest.raises(whence.InputError, match=message):
        whence.step_function()(function)
    assert function.__name__ not in STEP_FUNCTIONS


def test_names_are_taken_once(registered):
    with pytest.raises(whence.InputError, match="exists already"):
        whence.step_function("entropy")(lead)
    whence.step_function("entropy", overwrite=True)(lead)
    assert STEP_FUNCTIONS["entropy"].fn is lead
    with pytest.raises(whence.UnknownNameError, match="need of a step function"):
        whence.step_function(needs=["contrasts"])(lead)


def test_what_is_no_target_is_refused():
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.InputError, match="step function or the name of one"):
        model.attribute(PROMPT, CONTINUATION, target=3)
