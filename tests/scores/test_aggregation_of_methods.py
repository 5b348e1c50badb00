"""Tokens merged after a method ran, against the same tokens joined before it ran."""

from __future__ import annotations

import numpy as np
import pytest

import whence

ASK = {"prompt": "Once upon a time Zarathustra's cat", "continuation": " was unbelievably sleepy."}


@pytest.fixture(scope="module")
def model() -> whence.Model:
    return whence.load("whence/stories")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("input_x_gradient", {}),
        ("integrated_gradients", {"n_steps": 4}),
        ("saliency", {}),
        ("saliency", {"norm": "l1"}),
        ("saliency", {"norm": "linf"}),
        ("squaregrad", {"n_samples": 3}),
        ("attention", {}),
    ],
)
def test_words_are_what_segments_give(model: whence.Model, method: str, options: dict) -> None:
    before = model.attribute(**ASK, method=method, segments="word", **options)
    after = model.attribute(**ASK, method=method, **options).aggregate("words:source+prefix")
    texts = [token.text for token in before.tokens]
    assert [token.text for token in after.tokens] == texts
    assert [token.ids for token in after.tokens] == [token.ids for token in before.tokens]
    assert any(len(token.ids) > 1 for token in after.tokens)
    # A segment is seen from its first token on. Where a step stands inside a word, both sum what it can see.
    np.testing.assert_array_equal(after.scores.defined, before.scores.defined)
    np.testing.assert_allclose(after.scores.values, before.scores.values, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["input_x_gradient", "occlusion"])
def test_all_steps_of_an_additive_method_are_the_whole(model: whence.Model, method: str) -> None:
    ask = {**ASK, "method": method, "target": "logprob"}
    whole = model.attribute(**ask, steps="whole")
    merged = model.attribute(**ask).aggregate("step:sum")
    assert merged.steps[0].text == whole.steps[0].text
    both = merged.scores.defined & whole.scores.defined
    np.testing.assert_array_equal(merged.scores.defined, whole.scores.defined)
    np.testing.assert_allclose(merged.scores.values[both], whole.scores.values[both], rtol=1e-3, atol=1e-4)
