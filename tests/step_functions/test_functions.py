"""Step functions on logits alone: closed forms, identities, limits, and the rules of the table."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import whence
from whence.scores.merges import merge_steps
from whence.step_functions import STEP_FUNCTIONS, resolve_step_function, share_options
from whence.step_functions.custom import check_step_function
from whence.step_functions.inputs import ContrastInputs, StepInputs

LOGITS = st.lists(st.floats(-20, 20), min_size=3, max_size=3)


def value(name, logits, token=0, contrast=None, foil=None, noisy=None):
    """A step function of one row and one step."""
    z = torch.tensor([[logits]], dtype=torch.float64)
    other = None
    if contrast is not None:
        ids = torch.tensor([[token if foil is None else foil]])
        other = ContrastInputs(torch.tensor([[contrast]], dtype=torch.float64), ids)
    runs = None if noisy is None else torch.tensor(noisy, dtype=torch.float64)[:, None, None]
    function = resolve_step_function(name)
    return float(function.fn(StepInputs(z, torch.tensor([[token]]), other, runs), **function.options))


@pytest.mark.parametrize("name", list(STEP_FUNCTIONS))
def test_every_row_of_the_table_is_what_it_says(name):
    check_step_function(STEP_FUNCTIONS[name])


def test_closed_forms():
    z = [math.log(0.5), math.log(0.3), math.log(0.2)]
    assert value("probability", z) == pytest.approx(0.5)
    assert value("crossentropy", z, 1) == pytest.approx(-math.log(0.3))
    assert value("perplexity", z, 1) == pytest.approx(1 / 0.3)
    assert value("log_odds", z) == pytest.approx(0.0)
    assert value("margin", z, 1) == pytest.approx(math.log(0.3 / 0.5))
    assert value("rank", z, 2) == 3
    assert [value(f"top_p_size:top_p={p}", z) for p in (0.1, 0.5, 0.51, 0.8, 0.81, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert value("entropy:base=2", [0.0, 0.0, -math.inf]) == pytest.approx(1.0)
    other = [math.log(0.1), math.log(0.6), math.log(0.3)]
    assert value("contrast_prob_diff", z, 0, other, 1) == pytest.approx(0.5 - 0.6)
    assert value("pcxmi", z, 0, other) == pytest.approx(math.log(0.1 / 0.5))
    assert value("pcxmi:base=2", z, 0, other) == pytest.approx(math.log2(0.1 / 0.5))
    assert value("kl_divergence:top_k=1", z, 0, other) == pytest.approx(
        5 / 8 * math.log((5 / 8) / (1 / 7)) + 3 / 8 * math.log((3 / 8) / (6 / 7))
    )


def test_log_odds_are_exact_where_the_probability_rounds_to_one():
    assert value("log_odds", [100.0, 0.0, 0.0]) == pytest.approx(100 - math.log(2), rel=1e-12)


def test_tokens_that_are_masked():
    masked, also = [1.0, 2.0, -math.inf], [2.0, 1.0, -math.inf]
    for name in ("kl_divergence", "jsd", "jsd:sqrt=true", "kl_divergence:top_p=0.9", "entropy"):
        assert math.isfinite(value(name, masked, 0, also))
        z = torch.tensor([[masked]], requires_grad=True)
        function = resolve_step_function(name)
        inputs = StepInputs(z, torch.tensor([[0]]), ContrastInputs(torch.tensor([[also]]), torch.tensor([[0]])))
        (grad,) = torch.autograd.grad(function.fn(inputs, **function.options).sum(), z)
        assert torch.isfinite(grad).all()


@given(LOGITS, LOGITS)
def test_identities(first, second):
    for name in ("kl_divergence", "jsd", "jsd:sqrt=true", "kl_divergence:top_k=2", "kl_divergence:top_p=0.7"):
        assert value(name, first, 0, first) == pytest.approx(0, abs=1e-7)
        assert value(name, first, 0, second) >= -1e-12
    assert value("jsd", first, 0, second) == pytest.approx(value("jsd", second, 0, first), abs=1e-12)
    assert value("jsd", first, 0, second) <= math.log(2) + 1e-12
    assert value("pcxmi", first, 1, second) == pytest.approx(-value("pcxmi", second, 1, first), abs=1e-9)
    assert value('pcxmi:context="main"', first, 1, second) == pytest.approx(-value("pcxmi", first, 1, second))
    there = value('kl_divergence:direction="contrast_to_main"', first, 0, second)
    assert there == pytest.approx(value("kl_divergence", second, 0, first), abs=1e-12)


@given(st.lists(LOGITS, min_size=2, max_size=5), LOGITS)
def test_dropout(noisy, clean):
    probabilities = [value("probability", one, 1) for one in noisy]
    assert value("mc_dropout_prob_avg", clean, 1, noisy=noisy) == pytest.approx(np.mean(probabilities))
    spread = np.std(probabilities, ddof=1)
    assert value("mc_dropout_prob_std", clean, 1, noisy=noisy) == pytest.approx(spread, abs=1e-12)
    score = value("mc_dropout_zscore", clean, 1, noisy=noisy)
    if spread > 1e-9:
        assert score == pytest.approx((value("probability", clean, 1) - np.mean(probabilities)) / spread)
    assert math.isnan(value("mc_dropout_zscore", clean, 1, noisy=[noisy[0]] * 3))


@given(st.lists(st.tuples(LOGITS, LOGITS), min_size=1, max_size=5))
def test_spans_are_what_the_span_has(steps):
    """Each rule against the number of the whole span, computed from its probability."""
    names = ["logprob", "probability", "crossentropy", "perplexity", "log_odds", "contrast_prob_diff", "contrast_prob"]
    found = {name: np.array([value(name, z, 1, c, 2) for z, c in steps]) for name in names}
    rules = {name: STEP_FUNCTIONS[name].merge for name in names}
    merged = {name: row[0] for name, row in merge_steps(found, rules, [range(len(steps))]).items()}
    whole = math.exp(sum(value("logprob", z, 1) for z, _ in steps))
    foil = math.exp(sum(value("logprob", c, 2) for _, c in steps))
    assert merged["probability"] == pytest.approx(whole, rel=1e-6)
    assert merged["logprob"] == pytest.approx(math.log(whole), rel=1e-6, abs=1e-7)
    assert merged["crossentropy"] == pytest.approx(-math.log(whole), rel=1e-6, abs=1e-7)
    assert merged["perplexity"] == pytest.approx(whole ** (-1 / len(steps)), rel=1e-5)
    assert merged["contrast_prob_diff"] == pytest.approx(whole - foil, rel=1e-5, abs=1e-7)
    if whole < 1 - 1e-9:
        assert merged["log_odds"] == pytest.approx(math.log(whole / (1 - whole)), rel=1e-4, abs=1e-5)


def test_merge_rules_refuse_what_they_cannot_do():
    with pytest.raises(whence.InputError, match="needs contrast_prob"):
        merge_steps({"d": np.ones(2), "p": np.ones(2)}, {"d": ("difference", "p", "contrast_prob")}, [(0, 1)])
    with pytest.raises(whence.UnknownNameError, match="merge rule 'summ'"):
        merge_steps({"d": np.ones(2)}, {"d": "summ"}, [(0, 1)])


def test_options():
    bound = resolve_step_function("kl_divergence:top_k=3,base=2")
    assert bound.options == {"top_k": 3, "base": 2}
    assert (bound.unit, bound.label) == ("bits", "kl_divergence:top_k=3,base=2")
    assert resolve_step_function("contrast_prob_diff:log=true").merge == "sum"
    (kl, entropy), left = share_options(
        [STEP_FUNCTIONS["kl_divergence"], STEP_FUNCTIONS["entropy"]], {"top_k": 3, "base": 2, "n_steps": 4}
    )
    assert (kl.options, entropy.options, left) == ({"top_k": 3, "base": 2}, {"base": 2}, {"n_steps": 4})
    with pytest.raises(whence.UnknownNameError, match="'base'"):
        resolve_step_function("entropy:bass=2")
