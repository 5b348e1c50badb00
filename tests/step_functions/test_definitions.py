"""Every step function against its definition, as a score and as a target, on the untraced model in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_steps import ALONE, COUNTS, PAIRED, TWO_RUNS, Text, value_and_scores
from tiny_models import tiny_model

TEXT = Text([7, 21, 9, 33, 12], [17, 8, 40, 11])
LONGER = Text([5, 30, 9, 33, 12, 6, 21], [44, 8, 13, 19])
# One token of the continuation differs; one more follows in the other.
FOIL = Text(TEXT.prompt, [17, 25, 40, 11])
SOURCE = Text([7, 50, 9, 33, 12], TEXT.continuation)
MODELS = ("gpt2", "llama", "t5", "marian")
CONTRASTS = {
    "foil in the same run": (FOIL, {"continuation": FOIL.continuation}, {}),
    "foil in its own run": (FOIL, {"continuation": FOIL.continuation, "evaluate": "own"}, {"grad": "shared"}),
    "foil as a constant": (FOIL, {"continuation": FOIL.continuation, "evaluate": "own", "grad": "main"}, {}),
    "another source": (SOURCE, {"source": SOURCE.prompt}, {}),
    "another source, shared": (SOURCE, {"source": SOURCE.prompt, "grad": "shared"}, {"grad": "shared"}),
}


@pytest.fixture(params=MODELS)
def hf(request):
    # In float64, Llama's eager attention makes NaN of rows that are padding alone.
    attention = "sdpa" if request.param == "llama" else "eager"
    return tiny_model(request.param, dtype=torch.float64, attention=attention)


def slow(hf, text, value, **contrast):
    """Values of all steps, and scores [step, token] with zeros where a step cannot look."""
    rows = [value_and_scores(hf, text, step, value, partner=step, **contrast) for step in range(len(text.continuation))]
    width = len(rows[-1][1])
    scores = np.zeros((len(rows), width))
    for row, (_, found) in zip(scores, rows, strict=True):
        row[: len(found)] = found.numpy()
    return np.array([number for number, _ in rows]), scores


def close(found, expected, limit=2e-5):
    scale = max(np.abs(expected).max(), 1e-12)
    np.testing.assert_allclose(np.nan_to_num(found) / scale, expected / scale, rtol=0, atol=limit)


def test_numbers_of_one_run_in_a_batch(hf):
    names = [*ALONE, *COUNTS]
    model = whence.load(hf)
    outs = model.attribute(
        [TEXT.prompt, LONGER.prompt], [TEXT.continuation, LONGER.continuation], method="none", step_scores=names
    )
    for out, text in zip(outs, (TEXT, LONGER), strict=True):
        assert set(out.step_scores) == set(names)
        for name in names:
            expected, _ = slow(hf, text, (ALONE | COUNTS)[name])
            close(out.step_scores[name], expected)


@pytest.mark.parametrize("name", ALONE)
def test_numbers_of_one_run_as_targets(hf, name):
    expected, scores = slow(hf, TEXT, ALONE[name])
    out = whence.load(hf).attribute(TEXT.prompt, TEXT.continuation, target=name, step_scores=[name])
    close(out.step_scores[name], expected)
    close(out.scores.values, scores)
    assert out.verified


@pytest.mark.parametrize("kind", CONTRASTS)
def test_contrasts_as_scores_and_targets(hf, kind):
    other, spec, how = CONTRASTS[kind]
    evaluate = "main" if "same run" in kind else "own"
    names = [*PAIRED, *(TWO_RUNS if evaluate == "own" else {})]
    model = whence.load(hf)
    for name in names:
        value = (PAIRED | TWO_RUNS)[name]
        expected, scores = slow(hf, TEXT, value, other=other, evaluate=evaluate, **how)
        constant = evaluate == "own" and not how
        if constant and name.startswith(("contrast_logits", "contrast_prob")) and "diff" not in name:
            with pytest.raises(whence.TargetIndependentOfInput, match="constant of this text"):
                model.attribute(TEXT.prompt, TEXT.continuation, target=name, contrast=spec)
            out = model.attribute(TEXT.prompt, TEXT.continuation, method="none", step_scores=[name], contrast=spec)
            close(out.step_scores[name], expected)
            continue
        out = model.attribute(TEXT.prompt, TEXT.continuation, target=name, step_scores=[name], contrast=spec)
        close(out.step_scores[name], expected)
        # Where both texts have been alike so far, the square root of their divergence has no derivative.
        rows = slice(None) if name != "jsd:sqrt=true" or "source" in kind else slice(2, None)
        close(out.scores.values[rows], scores[rows])
        assert out.verified


def test_contrasts_in_a_batch_equal_each_alone(hf):
    model = whence.load(hf)
    specs = [
        {"continuation": [17, 25, 40, 11], "evaluate": "own"},
        {"continuation": [44, 8, 22, 19], "evaluate": "own"},
    ]
    given = {"target": "contrast_prob_diff", "step_scores": ["kl_divergence"], "method": "integrated_gradients"}
    prompts, texts = [TEXT.prompt, LONGER.prompt], [TEXT.continuation, LONGER.continuation]
    together = model.attribute(prompts, texts, contrast=specs, n_steps=4, **given)
    for k, out in enumerate(together):
        alone = model.attribute(prompts[k], texts[k], contrast=specs[k], n_steps=4, **given)
        np.testing.assert_allclose(out.scores.values, alone.scores.values, atol=1e-7)
        np.testing.assert_allclose(out.step_scores["kl_divergence"], alone.step_scores["kl_divergence"], atol=1e-7)


def test_a_perturbation_method_takes_any_number(hf):
    """Occlusion of a count: what it is, less what it is without the token, by hand."""
    model = whence.load(hf)
    out = model.attribute(TEXT.prompt, TEXT.continuation, method="occlusion", target="rank", sides="source")
    whole, _ = slow(hf, TEXT, COUNTS["rank"])
    np.testing.assert_array_equal(out.view().values, np.round(out.view().values))
    again = model.attribute(TEXT.prompt, TEXT.continuation, method="none", step_scores=["rank"])
    np.testing.assert_array_equal(again.step_scores["rank"], whole)
    with pytest.raises(whence.UnsupportedError, match="rank has no gradient"):
        model.attribute(TEXT.prompt, TEXT.continuation, target="rank")


@pytest.mark.parametrize("kind", ["foil in the same run", "foil in its own run", "another source"])
@pytest.mark.parametrize("mode", ["reverse", "forward", "finite"])
def test_all_ways_to_differentiate_agree(kind, mode):
    hf = tiny_model("llama", dtype=torch.float64)
    other, spec, how = CONTRASTS[kind]
    evaluate = "main" if "same run" in kind else "own"
    _, scores = slow(hf, TEXT, PAIRED["contrast_prob_diff"], other=other, evaluate=evaluate, **how)
    given = {"derivative": "finite"} if mode == "finite" else {"mode": mode}
    limit = 1e-3 if mode == "finite" else 2e-5
    out = whence.load(hf).attribute(TEXT.prompt, TEXT.continuation, target="contrast_prob_diff", contrast=spec, **given)
    close(out.scores.values, scores, limit)


def test_where_the_foil_is_the_token_nothing_is_explained_and_nothing_fails():
    """The target is 0 whatever the input is: so are its derivatives, to the last bit, and no check divides by them."""
    model = whence.load(tiny_model("marian"))
    for method in ("saliency", "integrated_gradients", "deeplift"):
        for target in ("contrast_prob_diff", "contrast_prob_diff:log=true", "contrast_logits_diff"):
            out = model.attribute(
                TEXT.prompt, TEXT.continuation, method=method, target=target, contrast=[17, 25, 40, 11], layer=None
            )
            assert not np.nan_to_num(out.scores.values[0]).any()
            assert out.info["contrast"]["foil_equal"] == (0, 2, 3)
            assert out.scores.values[1, 0] != 0
            failed = [check for check in out.checks if check.passed is False]
            assert not failed or method == "integrated_gradients"


def test_words_are_paired_by_the_models_own_embeddings():
    model = whence.load("whence/stories")
    given = {"continuation": " blue meadow and a red harbor", "align": "model"}
    prompt = "Near the village there was a"
    out = model.attribute(prompt, " red harbor", target="contrast_prob_diff", contrast=given)
    assert [foil.strip() for foil in out.info["contrast"]["foils"]] == ["red", "harbor"]
