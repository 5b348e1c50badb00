"""Small regressions of one number on features that are there or not: weighted ridge, lasso, and with a fixed sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Directions in which a design moves by less than this share of its largest are not determined by it.
_RANK = 1e-10
# Variances below this share of the squared size are rounding.
_CONSTANT = 1e-24
_TOLERANCE = 1e-10
_SWEEPS = 10_000


@dataclass(frozen=True)
class Fit:
    """A linear model of one number.

    Attributes:
        weights: One coefficient per feature.
        bias: The constant.
        r2: Weighted share of the variance that it explains; None where there is none to explain.
        condition: Condition number of the matrix that was solved; None where rows do not determine the
            coefficients.
        error: Standard errors of the coefficients, from residuals (sandwich estimator); None where there are none.
    """

    weights: Float[np.ndarray, " feature"]
    bias: float
    r2: float | None
    condition: float | None
    error: Float[np.ndarray, " feature"] | None


def fit_ridge(
    x: Float[np.ndarray, "row feature"],
    y: Float[np.ndarray, " row"],
    weights: Float[np.ndarray, " row"],
    *,
    alpha: float,
    clusters: Int[np.ndarray, " row"],
) -> Fit:
    """Minimise ``sum_r w_r (y_r - c - x_r b)^2 + alpha |b|^2`` over b and c; ordinary least squares for alpha 0.

    Args:
        x: The features.
        y: The number.
        weights: Weight of every row.
        alpha: Penalty; the constant has none.
        clusters: Which rows were drawn together.

    Returns:
        The fit. Of several that are as good, the smallest coefficients.
    """
    share = weights / weights.sum()
    middle, level = share @ x, share @ y
    flat, centred = x - middle, y - level
    solved, inverse, condition = _solve(
        (flat.T * weights) @ flat + alpha * np.eye(x.shape[1]), (flat.T * weights) @ centred
    )
    left = centred - flat @ solved
    return Fit(
        solved,
        float(level - middle @ solved),
        explained(y, left, weights),
        condition,
        _sandwich(inverse, flat, weights * left, clusters),
    )


def fit_lasso(
    x: Float[np.ndarray, "row feature"],
    y: Float[np.ndarray, " row"],
    weights: Float[np.ndarray, " row"],
    *,
    alpha: float,
) -> Fit:
    """Minimise ``sum_r w_r (y_r - c - s_r b)^2 / (2 sum_r w_r) + alpha |b|_1``, by coordinate descent.

    Here s are the features, each with its weighted mean taken off and divided by its standard deviation; the
    coefficients that come back are for the features as they are.

    Args:
        x: The features.
        y: The number.
        weights: Weight of every row.
        alpha: Penalty.

    Returns:
        The fit, without standard errors.
    """
    share = weights / weights.sum()
    middle, level = share @ x, share @ y
    spread = np.sqrt(share @ (x - middle) ** 2)
    moving = spread > 1e-12
    scaled = np.where(moving, (x - middle) / np.where(moving, spread, 1.0), 0.0)
    centred = y - level
    gram, pull = (scaled.T * share) @ scaled, (scaled.T * share) @ centred
    solved, signs, tried = np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.zeros(x.shape[1])
    slope, curvature = pull.copy(), np.diag(gram)
    enough = _TOLERANCE * max(np.abs(pull).max(initial=0.0), alpha)
    for _ in range(_SWEEPS):
        largest = 0.0
        for k in np.flatnonzero(moving):
            force = slope[k] + curvature[k] * solved[k]
            new = np.sign(force) * max(abs(force) - alpha, 0.0) / curvature[k]
            if new != solved[k]:
                step = new - solved[k]
                slope -= gram[k] * step
                solved[k] = new
                largest = max(largest, abs(step))
        if largest <= enough:
            break
        before, signs = signs, np.sign(solved)
        # Where the signs stand still, the solution with these signs may be the one; then no more sweeps are needed.
        if (signs == before).all() and (signs != tried).any():
            tried = signs
            if (found := _with_signs(gram, pull, signs, alpha)) is not None:
                solved = found
                break
    left = centred - scaled @ solved
    back = solved / np.where(moving, spread, 1.0)
    condition = _solve(gram[np.ix_(moving, moving)], pull[moving])[2]
    return Fit(back, float(level - middle @ back), explained(y, left, weights), condition, None)


def _with_signs(
    gram: Float[np.ndarray, "feature feature"],
    pull: Float[np.ndarray, " feature"],
    signs: Float[np.ndarray, " feature"],
    alpha: float,
) -> Float[np.ndarray, " feature"] | None:
    """The lasso's solution if its coefficients have these signs (zero is out), else None."""
    inside = signs != 0
    solved = np.zeros(len(signs))
    solved[inside] = _solve(gram[np.ix_(inside, inside)], pull[inside] - alpha * signs[inside])[0]
    slope = pull - gram @ solved
    right = (np.sign(solved) == signs).all() and np.allclose(slope[inside], alpha * signs[inside], atol=1e-9 * alpha)
    return solved if right and (np.abs(slope[~inside]) <= alpha).all() else None


def fit_with_sum(
    x: Float[np.ndarray, "row feature"],
    y: Float[np.ndarray, " row"],
    weights: Float[np.ndarray, " row"],
    *,
    bias: float,
    total: float,
    clusters: Int[np.ndarray, " row"],
) -> Fit:
    """Minimise ``sum_r w_r (y_r - bias - x_r b)^2`` over b with ``sum b = total``.

    The coefficients are equal shares of the total and a step along the directions that leave the sum alone.

    Args:
        x: The features.
        y: The number.
        weights: Weight of every row.
        bias: The constant.
        total: What the coefficients sum to.
        clusters: Which rows were drawn together.

    Returns:
        The fit. What rows do not determine stays as near as possible to equal shares.
    """
    count = x.shape[1]
    equal = np.full(count, total / count)
    # Orthonormal directions that sum to zero.
    basis = np.linalg.qr(np.eye(count) - 1 / count)[0][:, : count - 1]
    target = y - bias - x @ equal
    inside = x @ basis
    solved, inverse, condition = _solve((inside.T * weights) @ inside, (inside.T * weights) @ target)
    left = target - inside @ solved
    spread = _sandwich(basis @ inverse, inside, weights * left, clusters)
    return Fit(equal + basis @ solved, bias, explained(y, left, weights), condition, spread)


def explained(
    y: Float[np.ndarray, " row"], left: Float[np.ndarray, " row"], weights: Float[np.ndarray, " row"]
) -> float | None:
    """R squared: the weighted share of the variance of a number that a model explains; None where it is constant.

    Args:
        y: The number.
        left: What the model leaves of it.
        weights: Weight of every row.
    """
    whole = weights.sum()
    if whole == 0:
        return None
    level = weights @ y / whole
    variance = weights @ (y - level) ** 2
    if variance <= _CONSTANT * (weights @ y**2):
        return None
    return float(1 - weights @ left**2 / variance)


def _solve(
    matrix: Float[np.ndarray, "k k"], right: Float[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k k"], float | None]:
    """Solution of a symmetric system, the (pseudo) inverse, and the condition number or None if it is singular."""
    if not len(matrix):
        return right, matrix, 1.0
    values, vectors = np.linalg.eigh(matrix)
    enough = values > _RANK * max(values[-1], 0.0)
    turned = np.where(enough, 1 / np.where(enough, values, 1.0), 0.0)
    inverse = (vectors * turned) @ vectors.T
    condition = float(values[-1] / values[0]) if enough.all() else None
    return inverse @ right, inverse, condition


def _sandwich(
    bread: Float[np.ndarray, "feature k"],
    x: Float[np.ndarray, "row k"],
    pulls: Float[np.ndarray, " row"],
    clusters: Int[np.ndarray, " row"],
) -> Float[np.ndarray, " feature"]:
    """Standard errors that allow residuals of any size, and of rows that were drawn together."""
    count = int(clusters.max(initial=-1)) + 1
    sums = np.zeros((count, x.shape[1]))
    np.add.at(sums, clusters, x * pulls[:, None])
    return np.sqrt(((sums @ bread.T) ** 2).sum(0) * count / max(count - 1, 1))
