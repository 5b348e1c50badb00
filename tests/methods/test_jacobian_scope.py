"""jacobian_scope against the explicit Jacobian of the last hidden state, and the divergence it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_draws import placed, relative, steps_of
from slow_reference import embedding_modules, outputs_replaced
from tiny_models import tiny_model
from whence.probe.lanczos import top_eigenpairs

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def state_and_logits(hf, inputs, points):
    """What enters the unembedding at the last position, and the logits there, at given embeddings."""
    seen = []
    hook = hf.get_output_embeddings().register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    swaps = [(m, lambda value, at=at: at) for m, at in zip(embedding_modules(hf), points, strict=True)]
    try:
        with torch.enable_grad(), outputs_replaced(swaps):
            logits = hf(**inputs, use_cache=False).logits
    finally:
        hook.remove()
    return seen[0][0, -1], logits[0, -1]


def jacobians(hf, inputs, clean):
    """dh / de of every token [h unit, token, unit], dz / dh [vocab, h unit], h and p, one backward pass a number."""
    leaves = [value.clone().requires_grad_(True) for value in clean]
    state, _ = state_and_logits(hf, inputs, leaves)
    rows = []
    for unit in range(len(state)):
        grads = torch.autograd.grad(state[unit], leaves, retain_graph=True)
        rows.append(torch.cat([grad[0] for grad in grads]))
    cut = []
    head = hf.get_output_embeddings()

    def keep(module, args):
        cut.append(args[0].detach().requires_grad_(True))
        return (cut[-1], *args[1:])

    hook = head.register_forward_pre_hook(keep)
    try:
        with torch.enable_grad():
            logits = hf(**inputs, use_cache=False).logits[0, -1]
    finally:
        hook.remove()
    out = [torch.autograd.grad(one, cut[0], retain_graph=True)[0][0, -1] for one in logits]
    return torch.stack(rows), torch.stack(out), state.detach(), logits.detach().softmax(-1)


def slow(hf, scope, rank):
    """Scores by the explicit Jacobian and the explicit Fisher matrix."""
    scores = []
    for _, token, inputs, clean in steps_of(hf, PROMPT, CONTINUATION):
        jacobian, unembedding, state, p = jacobians(hf, inputs, clean)
        if scope == "fisher":
            fisher = unembedding.T @ (torch.diag(p) - p[:, None] * p) @ unembedding
            values, vectors = torch.linalg.eigh(fisher)
            parts = torch.einsum("hr,htu->rtu", vectors, jacobian).square().sum(-1)
            scores.append((values[-rank:, None] * parts[-rank:]).sum(0))
        else:
            vector = unembedding[token] if scope == "semantic" else state / state.norm()
            scores.append(torch.einsum("h,htu->tu", vector, jacobian).norm(dim=-1))
    return placed(scores, len(scores[-1]))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "t5_tied", "marian", "bart"])
@pytest.mark.parametrize(
    ("scope", "rank"), [("semantic", None), ("temperature", None), ("fisher", 1), ("fisher", 3), ("fisher", 16)]
)
def test_equals_the_explicit_jacobian(family, scope, rank):
    hf = tiny_model(family, dtype=torch.float64)
    expected = slow(hf, scope, rank)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="jacobian_scope", scope=scope, rank=rank)
    assert relative(out.scores.values, expected) < 1e-5
    assert out.verified
    names = {check.name for check in out.checks}
    assert ("eigenvectors" in names) == (scope == "fisher")


def test_full_rank_is_the_curvature_of_the_divergence():
    """KL(p(x) || p(x + d)) is d'J'FJd / 2 to second order, and the trace sums it over the units of a token."""
    hf = tiny_model("gpt2", dtype=torch.float64)
    out = whence.load(hf).attribute(PROMPT, CONTINUATION, method="jacobian_scope", scope="fisher", rank=16, steps=[1])
    _, _, inputs, clean = list(steps_of(hf, PROMPT, CONTINUATION))[1]
    base = state_and_logits(hf, inputs, clean)[1].detach().log_softmax(-1)

    def divergence(place, unit, size):
        at = clean[0].clone()
        at[0, place, unit] += size
        other = state_and_logits(hf, inputs, [at])[1].detach().log_softmax(-1)
        return float((base.exp() * (base - other)).sum())

    size = 1e-3
    for place in (0, 3, 5):
        curvature = sum(
            (divergence(place, unit, size) + divergence(place, unit, -size)) / size**2 for unit in range(16)
        )
        assert out.scores.values[0, place] == pytest.approx(curvature, rel=1e-4)


def test_the_semantic_scope_is_the_saliency_of_the_logit():
    model = whence.load(tiny_model("gemma2", dtype=torch.float64))
    for where in ({}, {"layer": "all"}, {"segments": [[0, 1, 2], [3, 4]]}):
        plain = model.attribute(PROMPT, CONTINUATION, method="saliency", target="logit", **where)
        out = model.attribute(PROMPT, CONTINUATION, method="jacobian_scope", **where)
        assert relative(out.scores.values, plain.scores.values) < 1e-6


@pytest.mark.parametrize("scope", ["semantic", "temperature", "fisher"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_batches_and_layers(family, scope):
    model = whence.load(tiny_model(family))
    prompts, texts = [[7, 21, 9, 33, 12, 50], [30, 12]], [[17, 8], [40, 11, 19]]
    options = {"method": "jacobian_scope", "scope": scope}
    for where in ({}, {"layer": "all"}):
        for one, prompt, text in zip(model.attribute(prompts, texts, **where, **options), prompts, texts, strict=True):
            alone = model.attribute(prompt, text, **where, **options)
            assert relative(one.scores.values, alone.scores.values) < 1e-4
            assert one.verified


def test_spans_and_segments_of_the_fisher_scope_are_sums():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    options = {"method": "jacobian_scope", "scope": "fisher", "rank": 2, "target": "logit"}
    steps = model.attribute(PROMPT, CONTINUATION, **options).scores.values
    span = model.attribute(PROMPT, CONTINUATION, steps=[(0, 3), 1], **options).scores.values
    assert relative(span[0], np.nansum(steps, axis=0)) < 1e-5
    assert relative(span[1], steps[1]) < 1e-5
    joint = model.attribute(PROMPT, CONTINUATION, segments=[[0, 1, 2], [3, 4]], **options).scores.values
    assert joint[0, 0] == pytest.approx(steps[0, :3].sum(), rel=1e-5)


@pytest.mark.parametrize(("scope", "rank"), [("semantic", None), ("temperature", None), ("fisher", 2)])
def test_both_modes_are_compared(scope, rank, monkeypatch):
    from whence.probe import differentiate

    model = whence.load(tiny_model("llama"))
    options = {"method": "jacobian_scope", "scope": scope, "rank": rank, "strict": True}
    out = model.attribute(PROMPT, CONTINUATION, **options)
    assert {check.name: check.passed for check in out.checks}["adjoint"]
    whole = differentiate.tangents

    def losing(*arguments):
        value, tangent = whole(*arguments)
        return value, 0.9 * tangent

    monkeypatch.setattr(differentiate, "tangents", losing)
    with pytest.raises(whence.CheckFailed, match="adjoint"):
        model.attribute(PROMPT, CONTINUATION, **options)


def test_the_check_sees_directions_that_are_no_eigenvectors(monkeypatch):
    from whence.probe import lanczos

    monkeypatch.setattr(lanczos, "ENOUGH", 10.0)
    out = whence.load(tiny_model("gpt2", dtype=torch.float64)).attribute(
        PROMPT, CONTINUATION, method="jacobian_scope", scope="fisher"
    )
    assert [check.name for check in out.checks if check.passed is False] == ["eigenvectors"]


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_eigenpairs_of_matrices_with_equal_and_missing_eigenvalues(rank):
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(3, 12, 12, dtype=torch.float64, generator=generator)).Q
    spectra = torch.zeros(3, 12, dtype=torch.float64)
    spectra[0] = torch.arange(12, 0, -1)
    spectra[1, :5] = torch.tensor([7.0, 7.0, 7.0, 1.0, 1.0])
    matrices = torch.einsum("cuk,ck,cvk->cuv", basis, spectra, basis)
    found = top_eigenpairs(
        lambda v: torch.einsum("cuv,cv->cu", matrices, v), (3, 12), rank, torch.float64, torch.device("cpu")
    )
    if rank == 12:
        assert torch.allclose(found["values"], spectra, atol=1e-9)
    # One vector meets an eigenspace in one direction only, so of equal eigenvalues the first is sure to be found.
    assert torch.allclose(found["values"][:, 0], spectra[:, 0], atol=1e-9)
    assert torch.allclose(found["values"][0], spectra[0, :rank], atol=1e-6)
    assert float(found["residual"].max()) < 1e-4
    gram = found["vectors"] @ found["vectors"].transpose(1, 2)
    assert torch.allclose(gram, torch.eye(rank, dtype=torch.float64).expand(3, -1, -1), atol=1e-8)


def test_cost():
    model = whence.load(tiny_model("gpt2"))
    options = {"method": "jacobian_scope", "scope": "fisher", "rank": 3}
    engine = model.attribute(PROMPT, CONTINUATION, **options).info["engine"]
    assert (engine["rows"], engine["vjps"]) == (1, 3 * len(CONTINUATION))
    estimate = model.estimate(PROMPT, CONTINUATION, **options)
    assert (estimate.forwards, estimate.derivatives) == (3, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "spectral"}, "unknown scope of jacobian_scope"),
        ({"rank": 2}, "belongs to scope='fisher'"),
        ({"scope": "fisher", "rank": 0}, "rank is a whole number of at least 1"),
        ({"baseline": "mean"}, "compares with nothing"),
        ({"mode": "forward"}, "whole gradient"),
    ],
)
def test_options_that_cannot_be_used_are_refused(options, message):
    model = whence.load(tiny_model("gpt2"))
    with pytest.raises(whence.WhenceError, match=message):
        model.attribute(PROMPT, CONTINUATION, method="jacobian_scope", **options)
