"""gradient_shap against plain PyTorch, its identity, and what its draws depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_draws import joined, kept_start, lowered, noisy, placed, relative, slope, steps_of
from slow_reference import gradients
from tiny_models import tiny_model, tiny_tokenizer
from whence.core.random import stream

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def draws(n_samples, references, seed=0):
    """Point and reference of every draw, as the specification has them."""
    for sample in range(n_samples):
        generator = stream(seed, "gradient_shap", sample)
        yield sample, (sample + generator.random()) / n_samples, int(generator.integers(references))


def slow(hf, vectors, *, n_samples, stdev, target):
    """Scores and standard errors, one step, draw and backward pass at a time; and the difference shared out."""
    fixed = kept_start(hf)
    scores, errors, differences = [], [], []
    for _, token, inputs, clean in steps_of(hf, PROMPT, CONTINUATION):
        found, lows = [], []
        for sample, share, reference in draws(n_samples, len(vectors)):
            low = lowered(clean, vectors[reference], fixed)
            noise = noisy(clean, "gradient_shap", sample, stdev, fixed)
            at = [b + share * (x - b) + e for x, b, e in zip(clean, low, noise, strict=True)]
            grad = slope(hf, inputs, at, target, token)
            found.append((grad * (joined(clean) - joined(low))).sum(-1))
            lows.append(gradients(hf, inputs, low, target, token)[1])
        top = gradients(hf, inputs, clean, target, token)[1]
        together = torch.stack(found)
        scores.append(together.mean(0))
        errors.append(together.std(0) / n_samples**0.5)
        differences.append(top - np.mean(lows))
    width = len(scores[-1])
    return placed(scores, width), placed(errors, width), np.array(differences)


def vectors_of(model, ids):
    """For each reference, the vector of each stream; None is the mean."""
    rows = model.embedding_rows([k for k in ids if k is not None])
    names = [k for k in ids if k is not None]
    return [[rows[s]["mean"] if k is None else rows[s]["rows"][names.index(k)] for s in rows] for k in ids]


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "t5", "marian"])
@pytest.mark.parametrize("stdev", [0.0, 0.2])
def test_equals_one_draw_at_a_time(family, stdev):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    vectors = vectors_of(model, [None, 11, 30])
    scores, errors, _ = slow(hf, vectors, n_samples=5, stdev=stdev, target="logprob")
    out = model.attribute(
        PROMPT, CONTINUATION, method="gradient_shap", target="logprob", baseline=["mean", 11, 30], n_samples=5,
        stdev=stdev, mode="reverse",
    )  # fmt: skip
    assert relative(out.scores.values, scores) < 1e-5
    assert relative(out.extras["standard_error"].values, errors) < 1e-4
    assert len(out.info["baseline"]) == 3 * (2 if model.encoder_decoder else 1)


def test_forward_mode_and_differences_give_the_same_scores_and_errors():
    model = whence.load(tiny_model("llama", dtype=torch.float64))
    options = {"method": "gradient_shap", "target": "logprob", "baseline": ["mean", 11], "n_samples": 4, "stdev": 0.1}
    reverse = model.attribute(PROMPT, CONTINUATION, mode="reverse", **options)
    for other in ({"mode": "forward"}, {"derivative": "finite"}):
        out = model.attribute(PROMPT, CONTINUATION, **other, **options)
        assert out.verified
        assert relative(out.scores.values, reverse.scores.values) < 1e-3
        assert relative(out.extras["standard_error"].values, reverse.extras["standard_error"].values) < 1e-2


def test_the_check_is_the_gap_beyond_three_standard_errors():
    hf = tiny_model("gpt2", dtype=torch.float64)
    model = whence.load(hf)
    vectors = vectors_of(model, [None, 11])
    scores, _, difference = slow(hf, vectors, n_samples=4, stdev=0.0, target="logit")
    total = np.nansum(scores, axis=1)
    # The drawn points leave a gap that is seen, and the check allows for as much chance as there was.
    assert np.abs(total - difference).max() > 1e-3
    out = model.attribute(
        PROMPT, CONTINUATION, method="gradient_shap", target="logit", baseline=["mean", 11], n_samples=4
    )
    check = {one.name: one for one in out.checks}["completeness"]
    assert check.tolerance == 2e-2
    slack = []
    for _, token, inputs, clean in steps_of(hf, PROMPT, CONTINUATION):
        missed = []
        for _, share, reference in draws(4, 2):
            low = lowered(clean, vectors[reference], kept_start(hf))
            at = [b + share * (x - b) for x, b in zip(clean, low, strict=True)]
            grad = slope(hf, inputs, at, "logit", token)
            ends = [gradients(hf, inputs, end, "logit", token)[1] for end in (clean, low)]
            missed.append(float((grad * (joined(clean) - joined(low))).sum()) - (ends[0] - ends[1]))
        slack.append(3 * np.std(missed, ddof=1) / 2)
    tops = [gradients(hf, i, c, "logit", t)[1] for _, t, i, c in steps_of(hf, PROMPT, CONTINUATION)]
    lows = np.array(tops) - difference
    scale = np.maximum(np.maximum(np.abs(tops), np.abs(lows)), np.nansum(np.abs(scores), axis=1))
    expected = (np.maximum(np.abs(total - difference) - slack, 0) / scale).max()
    assert check.value == pytest.approx(expected, abs=1e-6)


def test_many_draws_from_one_reference_are_integrated_gradients():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    options = {"target": "logit", "baseline": "mean"}
    exact = model.attribute(PROMPT, CONTINUATION, method="integrated_gradients", n_steps=100, **options)
    out = model.attribute(PROMPT, CONTINUATION, method="gradient_shap", n_samples=300, **options)
    assert relative(out.scores.values, exact.scores.values) < 5e-3
    total = np.nansum(out.scores.values - exact.scores.values, axis=1)
    assert np.abs(total).max() < 5e-3


def test_a_linear_target_needs_one_draw():
    """The logit is linear in what the last norm returns."""
    model = whence.load(tiny_model("llama", dtype=torch.float64))
    options = {"target": "logit", "layer": "ln_final", "baseline": ["mean"]}
    one = model.attribute(PROMPT, CONTINUATION, method="gradient_shap", n_samples=1, stratify=False, **options)
    many = model.attribute(PROMPT, CONTINUATION, method="gradient_shap", n_samples=7, stdev=0.5, **options)
    assert relative(one.scores.values, many.scores.values) < 1e-6
    assert "standard_error" not in one.extras
    assert np.nanmax(many.extras["standard_error"].values) < 1e-9
    # With a single draw nothing is known of chance, so the check only informs.
    assert [check.passed for check in one.checks if check.name == "completeness"] == [None]


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_batches_layers_segments_and_units(family):
    model = whence.load(tiny_model(family))
    prompts, texts = [[7, 21, 9, 33, 12, 50], [30, 12]], [[17, 8], [40, 11, 19]]
    options = {"method": "gradient_shap", "target": "logprob", "n_samples": 3, "stdev": 0.3, "baseline": ["mean", 11]}
    together = model.attribute(prompts, texts, **options)
    deep = model.attribute(prompts, texts, layer="all", **options)
    for one, all_layers, prompt, text in zip(together, deep, prompts, texts, strict=True):
        alone = model.attribute(prompt, text, **options)
        assert relative(one.scores.values, alone.scores.values) < 1e-5
        alone = model.attribute(prompt, text, layer="all", **options)
        assert relative(all_layers.scores.values, alone.scores.values) < 1e-5
    tokens = model.attribute(PROMPT, CONTINUATION, **options).scores.values
    width = tokens.shape[1]
    parts = [[0, 1, 2], list(range(3, width))]
    joint = model.attribute(PROMPT, CONTINUATION, segments=parts, **options).scores.values
    expected = np.stack([np.nansum(tokens[:, part], axis=1) for part in parts], axis=1)
    assert relative(joint, expected) < 1e-5
    units = model.attribute(PROMPT, CONTINUATION, units=True, **options)
    assert units.scores.names == ("step", "token", "unit")
    assert relative(units.scores.values.sum(-1), tokens) < 1e-4


def test_draws_depend_on_the_seed_and_not_on_the_steps():
    model = whence.load(tiny_model("gpt2"))
    options = {"method": "gradient_shap", "n_samples": 3, "stdev": 0.3, "baseline": "vocab:4"}
    first = model.attribute(PROMPT, CONTINUATION, **options)
    assert np.array_equal(first.scores.values, model.attribute(PROMPT, CONTINUATION, **options).scores.values, True)
    shorter = model.attribute(PROMPT, CONTINUATION[:2], **options)
    assert relative(shorter.scores.values, first.scores.values[:2, :6]) < 1e-5
    other = model.attribute(PROMPT, CONTINUATION, seed=1, **options)
    assert relative(other.scores.values, first.scores.values) > 1e-2
    assert {one["id"] for one in other.info["baseline"]} != {one["id"] for one in first.info["baseline"]}


def test_words_drawn_as_references_are_words():
    model = whence.load(tiny_model("gpt2"), tokenizer=tiny_tokenizer("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method="gradient_shap", n_samples=2, baseline="vocab:60")
    ids = [one["id"] for one in out.info["baseline"]]
    assert sorted(ids) == list(range(4, 64))
    assert {one["kind"] for one in out.info["baseline"]} == {"token"}


def test_cost():
    model = whence.load(tiny_model("gpt2"))
    out = model.attribute(PROMPT, CONTINUATION, method="gradient_shap", n_samples=6, baseline=["mean", 11, 12])
    used = {0, *(reference for _, _, reference in draws(6, 3))}
    engine = out.info["engine"]
    assert engine["rows"] == 6 + 1 + len(used)
    assert engine["vjps"] == 6 * len(CONTINUATION)
    assert model.estimate(PROMPT, CONTINUATION, method="gradient_shap", n_samples=6).derivatives == 18


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "n_samples is a whole number of at least 1"),
        ({"n_samples": True}, "n_samples is a whole number"),
        ({"stdev": -0.1}, "stdev is a number from 0 up to 1"),
        ({"baseline": []}, "0 tokens"),
        ({"baseline": "vocab:0"}, "from 1 to 61"),
        ({"baseline": "vocab:many"}, "from 1 to 61"),
        ({"baseline": ["mean", "no such word"]}, "tokenizer"),
        ({"method": "integrated_gradients", "baseline": ["mean", 11]}, "compares with one reference.*gradient_shap"),
        ({"method": "input_x_gradient", "baseline": "vocab:3"}, "compares with one reference"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, **{"method": "gradient_shap", **options})
