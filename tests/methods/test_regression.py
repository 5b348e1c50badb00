"""The small regressions against scikit-learn, closed forms and repeated sampling."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from sklearn.preprocessing import StandardScaler

from whence.methods.perturbation.regression import explained, fit_lasso, fit_ridge, fit_with_sum

ROWS, FEATURES = 80, 7


def data(seed=0, noise=0.3):
    numbers = np.random.default_rng(seed)
    x = (numbers.random((ROWS, FEATURES)) < numbers.random((ROWS, 1))).astype(float)
    y = x @ numbers.normal(size=FEATURES) + 2 + noise * numbers.normal(size=ROWS)
    return x, y, numbers.random(ROWS)


@pytest.mark.parametrize("alpha", [1.0, 0.01])
def test_ridge_equals_scikit_learn(alpha):
    x, y, weights = data()
    fit = fit_ridge(x, y, weights, alpha=alpha, clusters=np.arange(ROWS))
    other = Ridge(alpha=alpha).fit(x, y, sample_weight=weights)
    np.testing.assert_allclose(fit.weights, other.coef_, rtol=1e-9)
    assert fit.bias == pytest.approx(other.intercept_, rel=1e-9)
    assert fit.r2 == pytest.approx(other.score(x, y, sample_weight=weights), rel=1e-9)


def test_without_a_penalty_it_is_least_squares():
    x, y, weights = data()
    fit = fit_ridge(x, y, weights, alpha=0.0, clusters=np.arange(ROWS))
    other = LinearRegression().fit(x, y, sample_weight=weights)
    np.testing.assert_allclose(fit.weights, other.coef_, rtol=1e-8)


def test_lasso_equals_scikit_learn():
    x, y, _ = data()
    fit = fit_lasso(x, y, np.ones(ROWS), alpha=0.15)
    scaler = StandardScaler().fit(x)
    other = Lasso(alpha=0.15, tol=1e-12, max_iter=100_000).fit(scaler.transform(x), y)
    np.testing.assert_allclose(fit.weights, other.coef_ / scaler.scale_, rtol=1e-6, atol=1e-9)
    assert fit.bias == pytest.approx(other.intercept_ - (other.coef_ * scaler.mean_ / scaler.scale_).sum(), rel=1e-6)
    assert (other.coef_ == 0).any()
    np.testing.assert_array_equal(fit.weights == 0, other.coef_ == 0)


def test_weighted_lasso_equals_scikit_learn():
    x, y, weights = data(3)
    fit = fit_lasso(x, y, weights, alpha=0.02)
    scaler = StandardScaler().fit(x, sample_weight=weights)
    other = Lasso(alpha=0.02, tol=1e-12, max_iter=100_000).fit(scaler.transform(x), y, sample_weight=weights)
    np.testing.assert_allclose(fit.weights, other.coef_ / scaler.scale_, rtol=1e-6, atol=1e-9)


def test_lasso_leaves_out_constant_features_and_more_features_than_rows_are_no_harm():
    numbers = np.random.default_rng(5)
    x = (numbers.random((12, 20)) < 0.5).astype(float)
    x[:, 3] = 1
    y = 3 * x[:, 0] - x[:, 1]
    fit = fit_lasso(x, y, np.ones(12), alpha=0.01)
    assert fit.weights[3] == 0
    scaled = StandardScaler().fit_transform(x)
    other = Lasso(alpha=0.01, tol=1e-13, max_iter=1_000_000).fit(scaled, y)
    assert np.abs(fit.weights).max() > 0.5
    ours = y - fit.bias - x @ fit.weights
    theirs = y - other.predict(scaled)
    # The coefficients need not be unique; what they fit is.
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert fit.condition is None


def test_a_fixed_sum_equals_least_squares_with_the_last_feature_put_in():
    x, y, weights = data(1)
    bias, total = 0.4, 1.7
    fit = fit_with_sum(x, y, weights, bias=bias, total=total, clusters=np.arange(ROWS))
    root = np.sqrt(weights)[:, None]
    design, target = x[:, :-1] - x[:, -1:], y - bias - total * x[:, -1]
    first = np.linalg.lstsq(root * design, root[:, 0] * target, rcond=None)[0]
    np.testing.assert_allclose(fit.weights, [*first, total - first.sum()], rtol=1e-8)
    left = y - bias - x @ fit.weights
    level = np.average(y, weights=weights)
    assert fit.r2 == pytest.approx(1 - (weights * left**2).sum() / (weights * (y - level) ** 2).sum())
    assert fit.condition > 1


def test_what_rows_do_not_determine_is_shared_equally():
    x = np.array([[1.0, 0, 0, 0], [0, 1, 1, 1]])
    fit = fit_with_sum(x, np.array([2.0, 4.0]), np.ones(2), bias=0.0, total=6.0, clusters=np.arange(2))
    np.testing.assert_allclose(fit.weights, [2, 4 / 3, 4 / 3, 4 / 3])
    assert fit.condition is None
    none = fit_with_sum(x[:0], np.zeros(0), np.zeros(0), bias=0.0, total=6.0, clusters=np.zeros(0, dtype=int))
    np.testing.assert_allclose(none.weights, [1.5] * 4)
    assert none.r2 is None
    one = fit_with_sum(x[:, :1], np.zeros(2), np.ones(2), bias=0.0, total=6.0, clusters=np.arange(2))
    assert one.weights.tolist() == [6.0]


@pytest.mark.parametrize("paired", [False, True])
def test_standard_errors_are_the_spread_over_samples(paired):
    # Noise that two rows of a pair share, or not: errors have to know of pairs.
    numbers = np.random.default_rng(7)
    clusters = np.arange(200) // (2 if paired else 1)
    found, errors = [], []
    for _ in range(300):
        x = (numbers.random((200, 3)) < 0.5).astype(float)
        noise = numbers.normal(size=200)
        if paired:
            x[1::2] = x[::2]
            noise[1::2] = noise[::2]
        y = x @ np.array([1.0, -2.0, 0.5]) + noise * (1 + x[:, 0])
        fit = fit_ridge(x, y, np.ones(200), alpha=0.0, clusters=clusters)
        found.append(fit.weights)
        errors.append(fit.error)
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(found, axis=0), rtol=0.12)


def test_there_is_no_share_of_a_variance_that_is_none():
    assert explained(np.full(5, 3.0), np.zeros(5), np.ones(5)) is None
    assert explained(np.array([1.0, 2.0]), np.zeros(2), np.ones(2)) == 1
