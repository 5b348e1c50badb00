"""The main job on three small models trained by others, where their folder is present."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import whence
from benchmarks.parity import CALLS

FOLDER = Path(os.environ.get("WHENCE_TEST_MODELS", Path(__file__).parents[2] / "shared" / "models"))
METHODS = sorted(whence.METHODS)


@pytest.fixture(scope="module")
def load():
    if not FOLDER.is_dir():
        pytest.skip(f"no trained models at {FOLDER}; set WHENCE_TEST_MODELS to a folder that has them")
    return lambda name: whence.load(FOLDER / name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["stories260K", "makemore-induction", "sockeye-digit-copy"])
def test_the_main_job_runs(load, name, method):
    model = load(name)
    prompt = {"stories260K": "Once upon a time", "makemore-induction": "anna", "sockeye-digit-copy": "3 1 4"}[name]
    options = {**CALLS[method], "steps": "generated"}
    options |= {"n_steps": "auto"} if method == "integrated_gradients" else {}
    out = model.attribute(prompt, method=method, generate={"max_new_tokens": 6}, **options)
    assert 1 <= len(out.steps) <= 6
    # A path over few words has long steps, and says so.
    assert out.verified or method == "discretized_integrated_gradients"
    assert np.isfinite(out.scores.values[0, 0]).all() or method == "none"


def test_the_cue_of_a_pronoun_turns_the_score(load):
    """After "girl" the model prefers She, after "boy" He: exchanging the cue by a parallel text shows it."""
    model = load("stories260K")
    text = "Once upon a time there was a little {} named Lily."
    she = model.encode(" She").ids[-1]
    girl, boy = (list(model.encode(text.format(cue)).ids) for cue in ("girl", "boy"))
    values = {}
    for name, ids in (("girl", girl), ("boy", boy)):
        values[name] = model.attribute(ids, [she], step_scores=["logprob"]).step_scores["logprob"][0]
    assert values["girl"] > values["boy"]
    out = model.attribute(girl, [she], method="integrated_gradients", target="logprob", n_steps=64, baseline="mean")
    words = model.attribute(
        girl, [she], method="integrated_gradients", target="logprob", n_steps=64, baseline="mean", segments="word"
    )
    assert out.verified
    assert "girl" in [token.text.strip() for token, _ in words.top(6)[0]]


def test_an_induction_head_looks_after_the_earlier_occurrence(load):
    """A repeated character is followed by what followed it before: that is what the prediction rests on."""
    model = load("makemore-induction")
    vocabulary = model.tokenizer.get_vocab()
    prompt = [vocabulary[c] for c in "kqzmbxq"]
    out = model.attribute(
        prompt, [vocabulary["z"]], method="integrated_gradients", baseline="mean", n_steps="auto",
        target="logprob", step_scores=["probability"],
    )  # fmt: skip
    assert out.verified
    assert out.step_scores["probability"][0] > 0.9
    assert set(np.argsort(out.scores.values[0])[-2:].tolist()) == {1, 6}


def test_digit_copy_aligns_output_with_source(load):
    model = load("sockeye-digit-copy")
    out = model.attribute("3 1 4 1 5", method="integrated_gradients", generate={"max_new_tokens": 5})
    source = out.scores.values[:4, :5]
    assert [token.text.strip() for token in out.steps[:4]] == ["3", "1", "4", "1"]
    assert np.argmax(source, axis=1).tolist() == [0, 1, 2, 3]
