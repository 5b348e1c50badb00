"""Every rule alone: its multipliers account for the whole change of the output, whatever the two rows are."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from whence.probe.paired import mean_gradient
from whence.probe.rules import apply_rule, bent, joined, normed, paired, product, soft_cap, softmaxed
from whence.step_functions import STEP_FUNCTIONS
from whence.step_functions.inputs import ContrastInputs, StepInputs
from whence.step_functions.multipliers import logarithmic_mean

PAIRS = {"partner": torch.tensor([0]), "rows": 2}
TINY = 1e-12


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(high, low):
    """Both rows as a leaf."""
    return torch.stack([high, low]).requires_grad_(True)


def accounted(change, *leaves):
    """What the multipliers make of the whole displacement of every leaf; change [1, ...] is one value per output."""
    outputs = change.flatten()
    total = torch.zeros_like(outputs)
    for k, output in enumerate(outputs):
        for leaf, grad in zip(leaves, torch.autograd.grad(output, leaves, retain_graph=True), strict=True):
            assert grad[1].abs().max() == 0
            total[k] += (grad[0] * (leaf[0] - leaf[1])).sum()
    return total.detach()


DISTANCES = [0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-2, 1.0, 30.0]


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "silu", "relu", "tanh", "sigmoid", "quick_gelu", "leaky_relu"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_elementwise_functions(name, distance):
    fn = ACT2FN[name]
    low = randn(60, scale=2.0)
    x = rows(low + distance * randn(60, seed=1), low)
    top, bottom, change = bent(fn, paired(x, PAIRS))
    torch.testing.assert_close(accounted(change, x), (fn(x[0]) - fn(x[1])).detach(), rtol=0, atol=TINY)
    assert torch.equal(top[0], fn(x[0]))
    assert torch.equal(bottom[0], fn(x[1]))


@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-8, 1e-5, 1e-3])
def test_the_slope_between_close_values_is_the_derivative(distance):
    """A quotient of two roundings would be far off; this is what other features' shares are multiplied with."""
    x = rows(torch.linspace(-3, 3, 61, dtype=torch.float64) + distance, torch.linspace(-3, 3, 61, dtype=torch.float64))
    change = bent(ACT2FN["gelu"], paired(x, PAIRS))[2]
    slopes = torch.autograd.grad(change.sum(), x)[0][0]
    middle = x.detach().mean(0).requires_grad_(True)
    derivative = torch.autograd.grad(ACT2FN["gelu"](middle).sum(), middle)[0]
    torch.testing.assert_close(slopes, derivative, rtol=0, atol=1e-9 + distance**2)


def test_the_slope_over_a_corner_is_the_secants():
    x = rows(torch.tensor([0.003, 3.0, -1.0, 2.0]).double(), torch.tensor([-0.001, -1.0, -2.0, 1.0]).double())
    slopes = torch.autograd.grad(bent(torch.relu, paired(x, PAIRS))[2].sum(), x)[0][0]
    torch.testing.assert_close(slopes, torch.tensor([0.75, 0.75, 0.0, 1.0]).double())


def test_products_of_numbers_and_of_matrices():
    for multiply, shapes in ((torch.mul, ((3, 4), (3, 4))), (torch.matmul, ((2, 3, 4), (2, 4, 5)))):
        a, b = (rows(randn(*shape, seed=k), randn(*shape, seed=k + 5)) for k, shape in enumerate(shapes))
        change = product(paired(a, PAIRS), paired(b, PAIRS), multiply)[2]
        expected = (multiply(a[0], b[0]) - multiply(a[1], b[1])).flatten().detach()
        torch.testing.assert_close(accounted(change, a, b), expected, rtol=0, atol=TINY)


def norm(kind, size):
    torch.manual_seed(0)
    made = kind(size, eps=1e-5)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.double()


def change_of_norm(module, value):
    return normed(nn.ModuleDict({"norm": module}), {"path": "norm", "eps": 1e-5}, value, PAIRS)


@pytest.mark.parametrize("size", [6, 7])
@pytest.mark.parametrize(
    ("kind", "centred"),
    [(nn.LayerNorm, True), (nn.RMSNorm, False), (LlamaRMSNorm, False), (Gemma2RMSNorm, False), (T5LayerNorm, False)],
)
def test_norms(kind, centred, size):
    module = norm(kind, size)
    # Only torch's own compute in float64.
    atol = 1e-10 if kind in (nn.LayerNorm, nn.RMSNorm) else 1e-3
    for low in (randn(3, size, seed=1), torch.zeros(3, size).double()):
        x = rows(randn(3, size), low)
        change = change_of_norm(module, x)
        expected = (module(x[0]) - module(x[1])).flatten().detach()
        torch.testing.assert_close(accounted(change, x), expected, rtol=0, atol=atol)
    if centred:
        shifted = rows(randn(3, size) + 5.0, randn(3, size))
        assert accounted(change_of_norm(module, shifted), shifted).abs().max() < 1e-9


def masked(scores):
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 30.0])
def test_softmax(scale):
    low = randn(4, 4)
    x = rows(low + scale * randn(4, 4, seed=1), low)
    patterns = masked(x.detach()).softmax(-1)
    change = softmaxed(paired(patterns, PAIRS), paired(x + 100 * randn(4, 4, seed=2), PAIRS), sinks=False)[2]
    expected = (patterns[0] - patterns[1]).flatten()
    torch.testing.assert_close(accounted(change, x), expected, rtol=0, atol=TINY)
    # A change that all scores share changes nothing.
    shares = torch.autograd.grad(change[0, 3, 1], x, retain_graph=True)[0]
    assert abs(float(shares.sum())) < TINY


def test_softmax_whose_probabilities_underflow():
    """In single precision one row's weight is 0 where the other's is nearly 1."""
    high, low = torch.tensor([[0.0, -400.0, 3.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    x = rows(high, low)
    patterns = x.detach().softmax(-1)
    assert patterns[0, 0, 1] == 0
    for leaf in (x, rows(low, high)):
        patterns = leaf.detach().softmax(-1)
        change = softmaxed(paired(patterns, PAIRS), paired(leaf, PAIRS), sinks=False)[2]
        torch.testing.assert_close(accounted(change, leaf), (patterns[0] - patterns[1]).flatten(), rtol=0, atol=1e-5)


def test_softmax_with_sinks():
    x, sink = rows(randn(3, 4), randn(3, 4, seed=1)), randn(3, 1, seed=2)
    joined_scores = torch.cat([x, sink.expand(2, 3, 1)], dim=-1)
    patterns = joined_scores.softmax(-1)[..., :-1].detach()
    change = softmaxed(paired(patterns, PAIRS), paired(x, PAIRS), sinks=True)[2]
    torch.testing.assert_close(accounted(change, x), (patterns[0] - patterns[1]).flatten(), rtol=0, atol=TINY)


def test_rows_share_a_reference_and_may_be_joined_with_positions():
    pairs = {"partner": torch.tensor([0, 1, 0]), "rows": 5}
    x = randn(5, 2, 3).requires_grad_(True)
    for value in (x, x.flatten(0, 1)):
        change = bent(soft_cap(2.0), paired(value, pairs))[2]
        out = joined(soft_cap(2.0)(value), change, pairs)
        assert torch.equal(out, soft_cap(2.0)(value))
        grad = torch.autograd.grad(out.sum(), x)[0]
        expected = 2 * (torch.tanh(x[:3] / 2) - torch.tanh(x[3:][pairs["partner"]] / 2))
        torch.testing.assert_close(grad[:3] * (x[:3] - x[3:][pairs["partner"]]), expected, rtol=0, atol=TINY)
        assert (grad[3:] == 0).all()


def test_a_bilinear_model_gives_shapley_values():
    """f = sum of a_i m_i and of b_ij m_i m_j over pairs; m_i is 1 in the input and 0 in the reference."""
    alone, together = randn(5), randn(5, 5, seed=1).triu(1)

    def value(present):
        m = torch.zeros(5).double()
        m[list(present)] = 1.0
        return float(alone @ m + m @ together @ m)

    m = rows(torch.ones(5).double(), torch.zeros(5).double())
    mixed = m @ together
    change = product(paired(mixed, PAIRS), paired(m, PAIRS), torch.mul)[2].sum() + (alone * (m - m.detach())[0]).sum()
    found = torch.autograd.grad(change, m)[0][0]
    for feature in range(5):
        others = [k for k in range(5) if k != feature]
        shapley = 0.0
        for size in range(5):
            weight = math.factorial(size) * math.factorial(4 - size) / math.factorial(5)
            shapley += weight * sum(value((*some, feature)) - value(some) for some in combinations(others, size))
        assert float(found[feature]) == pytest.approx(shapley, abs=TINY)


class Plain(nn.Module):
    """Three linear layers with a corner between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.bend, self.fold = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.third(self.fold(self.second(self.bend(self.first(x)))))


def test_a_plain_network_gives_the_classic_rescale_rule():
    """Shrikumar et al. 2017, equations 3 and 11, by hand from the output backwards."""
    import nnsight

    net = Plain().double()
    x, b = randn(4, 6), randn(4, 6, seed=1)
    # The paper's rule: multipliers of a nonlinearity are change of output over change of input.
    states = []
    for value in (x, b):
        a = net.first(value)
        c = net.second(a.relu())
        states.append((a, c))
    (a, c), (a_low, c_low) = states
    upper = net.third.weight[1] * ((c.relu() - c_low.relu()) / (c - c_low))
    lower = (upper @ net.second.weight) * ((a.relu() - a_low.relu()) / (a - a_low))
    expected = ((lower @ net.first.weight) * (x - b)).detach()

    model = nnsight.NNsight(net)
    pairs, memory = {"partner": torch.arange(4), "rows": 8}, {}
    with model.trace(torch.cat([x, b])):
        leaf = model.first.input.detach().requires_grad_(True)
        model.first.input = leaf
        for name in ("bend", "fold"):
            apply_rule(model, {"rule": "elementwise", "path": name, "key": name}, pairs, memory)
        output = nnsight.save(model.output)
        grad = nnsight.save(torch.autograd.grad(model.output[:4, 1].sum(), leaf)[0])
    torch.testing.assert_close(output, net(torch.cat([x, b])))
    torch.testing.assert_close(grad[:4] * (x - b), expected, rtol=0, atol=TINY)
    assert (grad[4:] == 0).all()
    torch.testing.assert_close(expected.sum(1), (net(x) - net(b))[:, 1].detach(), rtol=0, atol=TINY)


@pytest.mark.parametrize("name", ["logit", "logprob", "probability"])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 200.0])
def test_multipliers_of_step_functions(name, scale):
    function = STEP_FUNCTIONS[name]
    low = randn(2, 3, 7)
    high, ids = low + scale * randn(2, 3, 7, seed=1), torch.tensor([[0, 1, 2], [3, 4, 5]])
    high[..., 6] = low[..., 6] = -torch.inf
    found, reference = StepInputs(high, ids), StepInputs(low, ids)
    multipliers = function.multipliers(found, reference)
    moved = torch.where(high == low, 0.0, high - low)
    change = function.fn(found) - function.fn(reference)
    torch.testing.assert_close((multipliers * moved).sum(-1), change, rtol=1e-10, atol=TINY)


def test_step_functions_without_multipliers_have_their_gradient_averaged():
    score = {"fn": STEP_FUNCTIONS["entropy"].fn, "options": {"base": 2}}
    nodes, weights = torch.tensor([0.5 - 12**-0.5, 0.5 + 12**-0.5]), torch.tensor([0.5, 0.5])
    low, ids = randn(1, 2, 5), torch.zeros(1, 2, dtype=torch.long)
    high = low + 0.01 * randn(1, 2, 5, seed=1)
    pairs = {"points": nodes.tolist(), "weights": weights.tolist()}
    mean = mean_gradient(score, StepInputs(high, ids), low, pairs)
    change = score["fn"](StepInputs(high, ids), base=2) - score["fn"](StepInputs(low, ids), base=2)
    torch.testing.assert_close((mean * (high - low)).sum(-1), change, rtol=0, atol=1e-9)


def test_a_foil_of_the_same_run_moves_with_it():
    """The multipliers of a difference of two logits, and of a function without multipliers that has a foil."""
    low, ids, foils = randn(1, 2, 5), torch.tensor([[0, 1]]), torch.tensor([[3, 1]])
    high = low + randn(1, 2, 5, seed=1)
    inputs, reference = (StepInputs(z, ids, ContrastInputs(z, foils)) for z in (high, low))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    pairs = {"points": ((nodes + 1) / 2).tolist(), "weights": (weights / 2).tolist()}
    for name in ("contrast_logits_diff", "contrast_prob_diff"):
        function = STEP_FUNCTIONS[name]
        change = function.fn(inputs) - function.fn(reference)
        mean = mean_gradient({"fn": function.fn, "options": {}}, inputs, low, pairs)
        torch.testing.assert_close((mean * (high - low)).sum(-1), change, rtol=0, atol=1e-9)
    function = STEP_FUNCTIONS["contrast_logits_diff"]
    multipliers = function.multipliers(inputs, reference)
    torch.testing.assert_close((multipliers * (high - low)).sum(-1), function.fn(inputs) - function.fn(reference))
    apart = StepInputs(high, ids, ContrastInputs(low.clone(), foils))
    own = function.multipliers(apart, apart)
    assert own.sum() == 2
    assert (own >= 0).all()


def test_logarithmic_mean():
    p = torch.tensor([0.5, 0.3, 0.0, 0.2, 0.0], dtype=torch.float64)
    q = torch.tensor([0.5, 0.1, 0.4, 0.2 + 1e-12, 0.0], dtype=torch.float64)
    u = torch.tensor([0.0, math.log(3), -500.0, -5e-12, 0.0], dtype=torch.float64)
    expected = torch.tensor([0.5, 0.2 / math.log(3), 0.4 / 500, 0.2, 0.0], dtype=torch.float64)
    torch.testing.assert_close(logarithmic_mean(p, q, u), expected, rtol=1e-9, atol=0)
