"""ContextCite: a planted model is found again, and fits are those of scikit-learn on the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler

import whence
from perturbed import GameProbe
from tiny_models import tiny_model
from whence.methods.perturbation.contextcite import log_odds, rank_correlation
from whence.methods.perturbation.masks import random_masks

PROMPT, CONTINUATION = [7, 21, 9, 33, 12, 5, 30, 14], [17, 8, 40]
SEGMENTS = [[0, 1], [2, 3], [4, 5], [6]]
SPAN = {"steps": [(0, 3)], "segments": SEGMENTS, "sides": ("source",), "target": "logprob"}


def planted(weights, bias):
    """Log-probabilities whose log odds are linear."""

    def value(kept):
        odds = bias + kept.double().numpy() @ weights
        return torch.from_numpy(-np.log1p(np.exp(-odds)))[:, None]

    return value


def test_a_sparse_model_is_found_up_to_the_threshold_of_the_lasso():
    weights = np.array([4.0, 0, 0, -3.0, 0, 0, 0, 1.5])
    probe = GameProbe(planted(weights, -2.0), 8, seed=3)
    found = whence.ContextCite(n_samples=4000, alpha=0.05)(probe)
    # Columns of +-1 that hardly correlate: each coefficient of the standardised model is 0.05 nearer to zero.
    expected = np.sign(weights) * (np.abs(weights) - 2 * 0.05) * (weights != 0)
    np.testing.assert_allclose(found.scores[0, 0], expected, atol=0.02)
    assert (found.scores[0, 0][weights == 0] == 0).all()
    assert found.each["r2"][0][0] > 0.99
    small = whence.ContextCite(alpha=1e-9)(probe)
    np.testing.assert_allclose(small.scores[0, 0], weights, atol=1e-6)
    assert small.each["bias"][0][0] == pytest.approx(-2.0, abs=1e-6)


def test_the_log_odds_of_what_is_nearly_sure_are_finite():
    np.testing.assert_allclose(log_odds(np.log([0.5, 0.9, 1e-9])), np.log([1, 9, 1e-9]), atol=1e-8)
    assert np.isfinite(log_odds(np.array([0.0, 1e-8, -1e-12]))).all()


def test_a_span_equals_scikit_learn_on_what_is_left_of_the_ids():
    hf = tiny_model("llama")
    out = whence.load(hf).attribute(
        PROMPT, CONTINUATION, method="contextcite", n_samples=20, alpha=0.02, validate=True, keep=[7], seed=4, **SPAN
    )
    able = np.array([True] * 4 + [False] * 3)
    kept = random_masks(4, "contextcite", able, 36, keep_prob=0.5, antithetic=False)[:, :4]
    y = []
    for row in kept:
        ids = [PROMPT[token] for k, group in enumerate([*SEGMENTS, [7]]) if k == 4 or row[k] for token in group]
        logprob = logprob_of_answer(hf, ids)
        y.append((logprob - np.log1p(-np.exp(logprob))) / 3)
    x, y = kept.astype(float), np.array(y)
    scaler = StandardScaler().fit(x[:20])
    other = Lasso(alpha=0.02, tol=1e-12, max_iter=100_000).fit(scaler.transform(x[:20]), y[:20])
    np.testing.assert_allclose(out.scores.values[0, :4], 3 * other.coef_ / scaler.scale_, rtol=1e-4, atol=1e-5)
    assert out.scores.values[0, 4] == 0
    assert np.isnan(out.scores.values[0, 5:]).all()
    engine = out.info["engine"]
    assert engine["r2"][0] == pytest.approx(other.score(scaler.transform(x[:20]), y[:20]), rel=1e-4)
    held = other.predict(scaler.transform(x[20:]))
    assert engine["lds"][0] == pytest.approx(stats.spearmanr(held, y[20:]).statistic, abs=1e-3)
    assert engine["empty"][0] == pytest.approx(logprob_of_answer(hf, PROMPT[7:]), rel=1e-5)
    assert out.verified


def logprob_of_answer(hf, ids):
    with torch.no_grad():
        logits = hf(torch.tensor([[*ids, *CONTINUATION[:-1]]])).logits[0, len(ids) - 1 :].double()
    return float(logits.log_softmax(-1)[torch.arange(3), CONTINUATION].sum())


def test_each_step_has_a_fit_of_its_own():
    model = whence.load(tiny_model("t5"))
    options = {"method": "contextcite", **SPAN, "steps": "generated"}
    out = model.attribute(PROMPT, CONTINUATION, **options)
    for step in range(3):
        alone = model.attribute(PROMPT, CONTINUATION, **{**options, "steps": [step]})
        np.testing.assert_allclose(out.scores.values[step, :5], alone.scores.values[0, :5], rtol=1e-4, atol=1e-5)
    assert len(out.info["engine"]["bias"]) == 3
    assert "lds" not in out.info["engine"]


def test_ranks_of_equal_values_are_shared():
    a, b = np.array([1.0, 2, 2, 3, 0]), np.array([5.0, 1, 4, 4, 4])
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_correlation(a, np.ones(5)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"removal": "erase"}, "unknown way of removing a feature"),
        ({"n_samples": 7}, "n_samples is at least 8, not 7"),
        ({"keep_prob": 0.0}, "keep_prob is between 0 and 1"),
        ({"alpha": 0.0}, "alpha is greater than 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.ContextCite(**options)
