"""The papers' examples of contrast on the bundled models: a word that one of two facts decides, and il or la."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import whence


@dataclass(frozen=True)
class Pair:
    """A text and its rival; what decides between them, and the step at which they part."""

    model: str
    source: str
    text: str
    foil: str
    decides: str
    parts: int


def story(color: str, text: str, foil: str) -> Pair:
    """A walk to the place that has the favorite color."""
    source = (
        f"Once upon a time there lived a monk named Rowan. He loved the color {color}. Near the village there was a "
        "blue meadow and a red harbor. After dinner he went to"
    )
    said = " the favorite place, the {}."
    return Pair("whence/stories", source, said.format(text), said.format(foil), color, 5)


HE, SHE = "Ieri il direttore ha detto che era stanco.", "Ieri la direttrice ha detto che era stanca."
SENTENCE = "Yesterday the manager said that {} was tired."
PAIRS = {
    "red": story("red", "red harbor", "blue meadow"),
    "blue": story("blue", "blue meadow", "red harbor"),
    "la": Pair("whence/en-it", SENTENCE.format("she"), SHE, HE, "she", 1),
    "il": Pair("whence/en-it", SENTENCE.format("he"), HE, SHE, "he", 1),
}
# Pieces of the feminine words are paired with the masculine word.
PARTNERS = [0, 1, 2, 2, 3, 4, 5, 6, 7, 7, 8, 9]


@pytest.fixture(scope="module")
def models():
    return {name: whence.load(name) for name in ("whence/stories", "whence/en-it")}


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def run(models, pair, text=None, **options):
    return models[pair.model].attribute(pair.source, text or pair.text, progress=False, **options)


def probability(models, pair, text):
    """Of every token of a text, in a plain run of that text."""
    return run(models, pair, text, method="none", step_scores=["probability"]).step_scores["probability"]


def compared(models, pair, *, names=("contrast_prob_diff", "contrast_prob"), **contrast):
    return run(models, pair, method="none", step_scores=list(names), contrast={"continuation": pair.foil, **contrast})


def test_nothing_is_compared_until_the_texts_differ(models, pair):
    out = run(
        models,
        pair,
        method="occlusion",
        target="contrast_prob_diff",
        contrast=pair.foil,
        step_scores=["contrast_prob_diff"],
    )
    difference = out.step_scores["contrast_prob_diff"]
    assert (difference[: pair.parts] == 0).all()
    assert difference[pair.parts] > 0.95
    before, at = out.scores.values[: pair.parts], out.scores.values[pair.parts]
    assert (before[out.scores.defined[: pair.parts]] == 0).all()
    assert np.nanmax(np.abs(at)) > 0.01
    assert out.info["contrast"]["foil_equal"][: pair.parts] == tuple(range(pair.parts))


def test_at_the_first_difference_it_is_the_difference_of_two_plain_runs(models, pair):
    mine, theirs = (probability(models, pair, text)[pair.parts] for text in (pair.text, pair.foil))
    for evaluate in ("main", "own"):
        found = compared(models, pair, evaluate=evaluate).step_scores["contrast_prob_diff"]
        assert found[pair.parts] == pytest.approx(mine - theirs, abs=1e-6)


def test_in_a_run_of_its_own_it_is_the_difference_of_two_plain_runs_everywhere(models):
    for pair in (PAIRS["red"], PAIRS["blue"]):
        mine, theirs = (probability(models, pair, text) for text in (pair.text, pair.foil))
        found = compared(models, pair, evaluate="own").step_scores
        np.testing.assert_allclose(found["contrast_prob_diff"], mine - theirs, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found["contrast_prob"], theirs, rtol=0, atol=1e-6)


def test_in_the_same_run_the_foil_follows_the_text(models):
    pair = PAIRS["la"]
    mine, theirs = ([step.id for step in run(models, pair, text, method="none").steps] for text in (SHE, HE))
    # Every token stands against one that the other text has somewhere else.
    partners = [(k + 1) % len(theirs) for k in range(len(mine))]
    align = list(enumerate(partners))
    expected = [probability(models, pair, [*mine[:k], theirs[j]])[k] for k, j in align]
    same = compared(models, pair, align=align).step_scores["contrast_prob"]
    own = compared(models, pair, align=align, evaluate="own").step_scores["contrast_prob"]
    np.testing.assert_allclose(same, expected, rtol=0, atol=1e-6)
    assert np.abs(same - own).max() > 0.5


@pytest.mark.parametrize("method", ["occlusion", "input_x_gradient", "integrated_gradients"])
def test_the_scores_are_the_difference_of_those_of_two_plain_runs(models, pair, method):
    ask = {"method": method, "steps": pair.parts}
    mine, theirs = (run(models, pair, text, target="probability", **ask) for text in (pair.text, pair.foil))
    seen = mine.scores.defined
    expected = mine.scores.values[seen] - theirs.scores.values[theirs.scores.defined]
    for evaluate in ("main", "own"):
        contrast = {"continuation": pair.foil, "evaluate": evaluate}
        out = run(models, pair, target="contrast_prob_diff", contrast=contrast, **ask)
        np.testing.assert_allclose(out.scores.values[seen], expected, rtol=0, atol=1e-5)


def test_texts_of_different_length_are_compared_at_the_pairs_that_were_given(models):
    pair = PAIRS["la"]
    theirs = probability(models, pair, pair.foil)
    out = compared(models, pair, evaluate="own", align=list(enumerate(PARTNERS)))
    np.testing.assert_allclose(out.step_scores["contrast_prob"], theirs[PARTNERS], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        out.step_scores["contrast_prob_diff"],
        probability(models, pair, pair.text) - theirs[PARTNERS],
        rtol=0,
        atol=1e-6,
    )
    assert out.info["contrast"]["foils"][2:4] == (" direttore", " direttore")


def test_without_pairs_the_tokens_that_are_equal_stand_against_each_other(models):
    for name in ("la", "il"):
        pair = PAIRS[name]
        out = compared(models, pair, evaluate="own")
        theirs = run(models, pair, pair.foil, method="none", step_scores=["probability"])
        foils = out.info["contrast"]["foils"]
        where = {step.text: k for k, step in enumerate(theirs.steps)}
        shared = [k for k, step in enumerate(out.steps) if step.text in where]
        # Ieri, ha, detto, che, era, the full stop and the end.
        assert len(shared) == 7
        for k in shared:
            assert foils[k] == out.steps[k].text
            expected = theirs.step_scores["probability"][where[foils[k]]]
            assert out.step_scores["contrast_prob"][k] == pytest.approx(expected, abs=1e-6)


@given(partners=st.lists(st.integers(0, len(PARTNERS) - 3), min_size=len(PARTNERS), max_size=len(PARTNERS)))
@settings(max_examples=15, deadline=None)
def test_any_pairs(models, partners):
    pair = PAIRS["la"]
    out = compared(models, pair, evaluate="own", align=list(enumerate(partners)))
    theirs = probability(models, pair, pair.foil)
    np.testing.assert_allclose(out.step_scores["contrast_prob"], theirs[partners], rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["occlusion", "integrated_gradients"])
def test_the_word_that_decides_has_the_highest_score_of_the_source(models, pair, method):
    out = run(
        models,
        pair,
        method=method,
        target="contrast_prob_diff",
        contrast=pair.foil,
        steps=pair.parts,
        segments="word",
    )
    source = [(token.text.strip(), score) for token, score in out.top(len(out.tokens))[0] if token.side == "source"]
    assert source[0][0] == pair.decides
    assert source[0][1] > 1.5 * source[1][1]
