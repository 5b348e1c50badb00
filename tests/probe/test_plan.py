"""How many rows go into a pass."""

from __future__ import annotations

import pytest

from whence.probe.plan import Shape, make_plan, make_rows

PLENTY = 2**50


def shape(hidden, positions):
    return Shape(((2, positions),), hidden, 4 * hidden, 4, 100, 8, 4, quadratic=False)


@pytest.mark.parametrize(
    ("hidden", "positions", "rows"),
    [
        (16, 100, 81),  # 8,192 tokens
        (128, 100, 81),
        (768, 100, 13),  # 1,365 tokens
        (4096, 100, 2),
        (4096, 1000, 1),
    ],
)
def test_a_cpu_gets_passes_as_long_as_it_gains_from(hidden, positions, rows):
    one = shape(hidden, positions)
    assert make_rows(one, 1000, free=PLENTY, cpu=True) == rows
    assert make_rows(one, 1000, free=PLENTY, cpu=True, width=2) == max(1, rows // 2)
    assert make_rows(one, 1000, free=PLENTY, cpu=False) == 1000
    asked = {"mode": "forward", "examples": 1, "points": 1000, "features": 1, "columns": 1, "free": PLENTY}
    assert make_plan(one, cpu=True, **asked).rows == rows
    # A row beside its reference is two.
    assert make_plan(one, cpu=True, width=2, **asked).rows == max(1, rows // 2)
    assert make_plan(one, cpu=False, **asked).rows == 1000


def test_no_more_rows_than_fit_or_than_there_are():
    one = shape(16, 10)
    assert make_rows(one, 3, free=PLENTY, cpu=True) == 3
    assert make_rows(one, 1000, free=10 * one.pass_bytes(), cpu=True) == 5
    assert make_rows(one, 1000, free=0, cpu=True) == 1


@pytest.mark.parametrize(("positions", "products"), [(95, 8), (271, 5), (775, 1), (8319, 1)])
def test_a_cpu_gets_as_many_products_as_it_gains_from(positions, products):
    asked = {"mode": "reverse", "examples": 1, "points": 1, "features": 9, "columns": 32, "free": PLENTY}
    assert make_plan(shape(768, positions), cpu=True, **asked).products == products
    assert make_plan(shape(768, positions), cpu=False, **asked).products == 8
    assert make_plan(shape(768, positions), cpu=True, **{**asked, "columns": 1}).products == 1


@pytest.mark.parametrize(("hidden", "rows"), [(16, 86), (128, 10), (768, 1)])
def test_products_take_the_place_of_rows_on_a_cpu(hidden, rows):
    asked = {"mode": "reverse", "examples": 1, "points": 1000, "features": 9, "columns": 32, "free": PLENTY}
    plan = make_plan(shape(hidden, 95), cpu=True, **asked)
    assert (plan.rows, plan.products) == (rows, 8)
    assert make_plan(shape(hidden, 95), cpu=False, **asked).rows == 1000
    # With a single column there is one product for each row, as many rows as without a graph.
    span = make_plan(shape(hidden, 95), cpu=True, **{**asked, "columns": 1})
    assert (span.rows, span.products) == (shape(hidden, 95).cpu_rows(), 1)
