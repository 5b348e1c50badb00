"""LIME against scikit-learn's weighted ridge on the same rows, and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import Lasso, Ridge
from sklearn.preprocessing import StandardScaler

import whence
from perturbed import GameProbe, mean_vectors, pairs, without
from tiny_models import tiny_model
from whence.methods.perturbation.masks import clusters, random_masks

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def test_the_number_of_kept_features_is_uniform_for_every_step():
    masks = random_masks(0, "lime", np.ones(6, dtype=bool), 7000)
    np.testing.assert_array_equal(masks[1::2], ~masks[::2])
    for seen in (1, 3, 6):
        counts = np.bincount(masks[:, :seen].sum(1), minlength=seen + 1)
        assert stats.chisquare(counts).pvalue > 1e-3
        # ... and whichever are kept is as likely as any other.
        kept = masks[masks[:, :seen].sum(1) == 1][:, :seen].sum(0)
        assert stats.chisquare(kept).pvalue > 1e-3 if seen > 1 else True
    half = random_masks(0, "lime", np.ones(6, dtype=bool), 4000, keep_prob=0.3, antithetic=False)
    assert half.mean() == pytest.approx(0.3, abs=0.01)


def test_rows_do_not_depend_on_what_stands_beside_an_example():
    few, many = np.ones(4, dtype=bool), np.array([True] * 4 + [False] * 3)
    np.testing.assert_array_equal(random_masks(1, "x", few, 9), random_masks(1, "x", many, 9)[:, :4])
    assert random_masks(1, "x", many, 9)[:, 4:].all()
    assert (random_masks(1, "x", few, 9) != random_masks(2, "x", few, 9)).any()
    assert (random_masks(1, "x", few, 9) != random_masks(1, "y", few, 9)).any()
    assert clusters(7, antithetic=True, first=2).tolist() == [0, 0, 1, 1, 2, 2, 3]


def asked_rows(probe):
    """Kept features of the rows that a probe was asked for."""
    return (~probe.asked[0][1]).double().numpy()


@pytest.mark.parametrize(
    ("options", "other"),
    [
        ({}, Ridge(alpha=1.0)),
        ({"alpha": 0.2, "width": 0.6}, Ridge(alpha=0.2)),
        ({"surrogate": "ols"}, Ridge(alpha=1e-10)),
        ({"keep_prob": 0.3, "antithetic": False}, Ridge(alpha=1.0)),
        ({"surrogate": "lasso"}, Lasso(alpha=0.01, tol=1e-12, max_iter=100_000)),
    ],
)
def test_every_step_equals_scikit_learn_on_the_same_rows(options, other):
    _, _, value = pairs(12, seed=2)
    seen = [5, 9, 12]
    game = lambda kept: torch.cat([value(kept * (torch.arange(12) < count)) for count in seen], 1)  # noqa: E731
    probe = GameProbe(game, 12, seen=seen, fixed=[1])
    # So many features that hardly a row is drawn twice; a row drawn twice is asked for once.
    found = whence.Lime(n_samples=40, **options)(probe)
    drawn = {"keep_prob": options.get("keep_prob"), "antithetic": options.get("antithetic", True)}
    rows = random_masks(0, "lime", probe.free[0].numpy(), 38, **drawn)
    rows = np.concatenate([np.ones((1, 12)), ~probe.free.numpy(), rows]).astype(float)
    assert {tuple(row) for row in asked_rows(probe)} == {tuple(row) for row in rows}
    for column, count in enumerate(seen):
        able = [k for k in range(count) if k != 1]
        x = rows[:, able]
        y = game(torch.from_numpy(rows))[:, column].numpy()
        distance = 1 - np.sqrt(x.sum(1) / len(able))
        weights = np.exp(-(distance**2) / (2 * options.get("width", 0.25) ** 2))
        scale = np.ones(len(able))
        if options.get("surrogate") == "lasso":
            scaler = StandardScaler().fit(x, sample_weight=weights)
            x, scale = scaler.transform(x), scaler.scale_
        expected = np.zeros(12)
        expected[able] = other.fit(x, y, sample_weight=weights).coef_ / scale
        np.testing.assert_allclose(found.scores[0, column], expected, rtol=1e-6, atol=1e-7)
        assert found.each["r2"][0][column] == pytest.approx(other.score(x, y, sample_weight=weights), rel=1e-6)
        assert found.each["effective_rows"][0][column] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert found.each["n_samples"] == [40]
    assert (found.error is None) == (options.get("surrogate") == "lasso")


def test_a_linear_target_is_found_exactly_without_a_penalty():
    a = np.arange(1.0, 7)
    probe = GameProbe(lambda kept: torch.from_numpy(3 + kept.double().numpy() @ a)[:, None], 6)
    found = whence.Lime(surrogate="ols")(probe)
    np.testing.assert_allclose(found.scores[0, 0], a, rtol=1e-9)
    assert found.each["r2"][0][0] == pytest.approx(1)
    np.testing.assert_allclose(found.error, 0, atol=1e-9)
    # The penalty pulls towards zero, the less the more rows there are.
    errors = [np.abs(whence.Lime(n_samples=n)(probe).scores[0, 0].numpy() - a).max() for n in (64, 512, 4096)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_standard_errors_are_the_spread_over_seeds():
    _, _, value = pairs(6, seed=3)
    found = [whence.Lime(n_samples=200)(GameProbe(value, 6, seed=seed)) for seed in range(60)]
    spread = np.std([one.scores[0, 0].numpy() for one in found], axis=0)
    errors = np.mean([one.error[0, 0].numpy() for one in found], axis=0)
    np.testing.assert_allclose(errors, spread, rtol=0.4)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_lime_equals_ridge_on_the_untraced_model(family):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    tokens = 8 if model.encoder_decoder else 7
    options = {"method": "lime", "target": "logprob", "baseline": "mean", "keep": "none", "n_samples": 24, "seed": 5}
    out = model.attribute(PROMPT, CONTINUATION, **options)
    kept = random_masks(5, "lime", np.ones(tokens, dtype=bool), 22)
    kept = np.concatenate([np.ones((1, tokens), dtype=bool), np.zeros((1, tokens), dtype=bool), kept])
    vectors = mean_vectors(model)
    values = np.array([without(hf, PROMPT, CONTINUATION, set(np.flatnonzero(~row)), vectors) for row in kept])
    for step in range(3):
        seen = 5 + step + model.encoder_decoder
        x = kept[:, :seen].astype(float)
        weights = np.exp(-((1 - np.sqrt(x.mean(1))) ** 2) / (2 * 0.25**2))
        expected = Ridge(alpha=1.0).fit(x, values[:, step], sample_weight=weights).coef_
        np.testing.assert_allclose(out.scores.values[step, :seen], expected, rtol=1e-4, atol=1e-6)
        assert np.isnan(out.scores.values[step, seen:]).all()
    assert out.verified
    assert len(out.info["engine"]["r2"]) == 3
    assert out.extras["standard_error"].shape == out.scores.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"removal": "erase"}, "unknown way of removing a feature"),
        ({"surrogate": "tree"}, "unknown surrogate of lime: 'tree'"),
        ({"n_samples": 3}, "n_samples is at least 4, not 3"),
        ({"width": 0.0}, "width is greater than 0"),
        ({"alpha": 0.0}, "a penalty is greater than 0"),
        ({"alpha": 1.0, "surrogate": "ols"}, "ols has none"),
        ({"keep_prob": 1.0}, "keep_prob is between 0 and 1"),
        ({"keep_prob": 0.3}, "antithetic=False"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.Lime(**options)


def test_too_few_rows_without_a_penalty_are_refused():
    _, _, value = pairs(8)
    with pytest.raises(whence.InputError, match="10 rows are too few for 8 features without a penalty"):
        whence.Lime(n_samples=10, surrogate="ols")(GameProbe(value, 8))
