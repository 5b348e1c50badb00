"""Quadrature rules on [0, 1]: where a path integral is sampled, and with which weights."""

from __future__ import annotations

import numpy as np

from whence.core.errors import InputError, unknown_name

RULES = ("gauss_legendre", "trapezoid", "midpoint", "left", "right")


def quadrature(rule: str, n_steps: int) -> tuple[list[float], list[float]]:
    """Points and weights of a rule.

    Args:
        rule: ``"gauss_legendre"`` (exact for polynomials up to degree ``2 n - 1``), ``"trapezoid"``,
            ``"midpoint"``, ``"left"`` or ``"right"``.
        n_steps: Number of points, at least 1 (2 for the trapezoid).

    Returns:
        Points in [0, 1], ascending, and weights that sum to 1.

    Raises:
        UnknownNameError: No rule of that name.
        InputError: Too few points.
    """
    if rule not in RULES:
        raise unknown_name("quadrature rule", rule, RULES)
    least = 2 if rule == "trapezoid" else 1
    if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < least:
        raise InputError(f"n_steps is a whole number of at least {least} for the {rule} rule, not {n_steps!r}.")
    if rule == "gauss_legendre":
        points, weights = np.polynomial.legendre.leggauss(n_steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    if rule == "trapezoid":
        weights = np.full(n_steps, 1 / (n_steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, n_steps).tolist(), weights.tolist()
    shift = {"midpoint": 0.5, "left": 0.0, "right": 1.0}[rule]
    return ((np.arange(n_steps) + shift) / n_steps).tolist(), [1 / n_steps] * n_steps
