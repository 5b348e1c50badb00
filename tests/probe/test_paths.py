"""Points of every kind: both modes agree there, and what is summed up on the way is what plain tensors give."""

from __future__ import annotations

import pytest
import torch

import whence
from tiny_models import tiny_model
from whence.probe import derivatives
from whence.probe.plan import Shape
from whence.probe.totals import add_row, finish, new_result, start_totals

PROMPT, CONTINUATION = [7, 21, 9], list(range(20, 36))
CALLS = [
    ("gradient_shap", {"stdev": 0.2, "n_samples": 3, "baseline": ["mean", 11]}),
    ("gradient_shap", {"n_samples": 3, "layer": 0}),
    ("smoothgrad", {"n_samples": 3}),
    ("smoothgrad", {"n_samples": 3, "base": "input_x_gradient", "baseline": "mean"}),
    ("vargrad", {"n_samples": 3}),
    ("discretized_integrated_gradients", {"n_anchors": 4}),
]


@pytest.mark.parametrize(("method", "options"), CALLS)
@pytest.mark.parametrize("family", ["qwen2", "t5"])
@pytest.mark.parametrize("mode", ["reverse", "auto"])
def test_both_modes_agree_at_the_last_point(family, method, options, mode, monkeypatch):
    monkeypatch.setattr(derivatives, "ADJOINT_PRODUCTS", 1)
    model = whence.load(tiny_model(family, dtype=torch.float64))
    out = model.attribute(PROMPT, CONTINUATION, method=method, target="logit", mode=mode, **options)
    passed = {check.name: check.passed for check in out.checks}
    assert passed["adjoint"]
    assert passed["no-op"]


@pytest.mark.parametrize(("points", "compared"), [(5, True), (4, False)])
def test_modes_are_compared_where_that_is_little_beside_the_products(points, compared):
    model = whence.load(tiny_model("llama"))
    options = {"method": "integrated_gradients", "n_steps": points, "baseline": "mean", "mode": "reverse"}
    # 16 steps; two texts have twice as many products and twice as many comparisons.
    for prompt, continuation in ((PROMPT, CONTINUATION), ([PROMPT] * 2, [CONTINUATION] * 2)):
        out = model.attribute(prompt, continuation, **options)
        for one in out if isinstance(out, whence.Attributions) else [out]:
            assert ("adjoint" in {check.name for check in one.checks}) == compared


@pytest.mark.parametrize(("more", "compared"), [(1, False), (0, True)])
def test_modes_are_not_compared_where_forward_mode_takes_more_memory(more, compared, monkeypatch):
    monkeypatch.setattr(Shape, "tangent_bytes", lambda shape: shape.graph_bytes(8) + more)
    model = whence.load(tiny_model("llama"))
    options = {"method": "integrated_gradients", "n_steps": 5, "baseline": "mean", "mode": "reverse"}
    out = model.attribute(PROMPT, CONTINUATION, **options)
    assert ("adjoint" in {check.name for check in out.checks}) == compared
    strict = model.attribute(PROMPT, CONTINUATION, strict=True, **{**options, "n_steps": 64})
    assert "adjoint" in {check.name for check in strict.checks}


def question(reduce, count, sampled=True):
    return {"reduce": reduce, "sampled": sampled, "samples": list(range(count))}


def total_of(rows, reduce, sampled=True):
    """A result of one example and one column, from rows [row, token (, unit)]."""
    asked = question(reduce, len(rows), sampled)
    result = new_result(1, 1, asked)
    start_totals(result, asked, (1, 1, *rows.shape[1:]), rows)
    for number, row in enumerate(rows):
        add_row(result, asked, (0, slice(0, 1)), row[None], 1 / len(rows), number + 1)
    return finish(result, asked)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_scatter_is_not_the_difference_of_large_numbers(offset):
    rows = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0)) + offset
    exact = rows.double().var(0, correction=0).sum(-1)
    torch.testing.assert_close(total_of(rows, "variance")["values"][0, 0].double(), exact, rtol=1e-3, atol=0)
    same = total_of(rows[:1].expand(50, -1, -1), "variance")
    assert float(same["values"].abs().max()) == 0
    assert float(same["error"].abs().max()) == 0


@pytest.mark.parametrize("reduce", ["dot", "gradient", "squares"])
def test_means_and_their_errors(reduce):
    rows = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = total_of(rows, reduce)
    torch.testing.assert_close(found["values"][0, 0], rows.mean(0))
    torch.testing.assert_close(found["error"][0, 0], rows.std(0) / 7**0.5)
    assert total_of(rows, reduce, sampled=False)["error"] is None
    torch.testing.assert_close(total_of(rows, reduce, sampled=False)["values"][0, 0], rows.mean(0))


@pytest.mark.parametrize(("reduce", "order"), [("l1", 1), ("l2", 2), ("linf", float("inf"))])
def test_norms_are_of_the_mean(reduce, order):
    rows = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = total_of(rows, reduce, sampled=False)
    torch.testing.assert_close(found["values"][0, 0], torch.linalg.vector_norm(rows.mean(0), order, dim=-1))
