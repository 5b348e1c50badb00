"""What holds for every perturbation method: its cost, batches, seeds, spans, and inputs of almost nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from removal_rows import TEXTS
from tiny_models import tiny_model
from whence.models.model import Model

METHODS = {
    "occlusion": {},
    "lime": {"n_samples": 24},
    "kernel_shap": {"n_samples": 40},
    "shapley_sampling": {"n_permutations": 5},
    "contextcite": {"n_samples": 12},
    "loo_segments": {},
}
SAMPLING = ("lime", "kernel_shap", "shapley_sampling", "contextcite")
PROMPT, CONTINUATION = TEXTS[0]


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def model(request):
    return whence.load(tiny_model(request.param))


@pytest.fixture(params=METHODS)
def options(request):
    # What is usual for a method is left aside: all are asked alike.
    usual = {"segments": "token", "steps": "generated", "sides": ("source", "prefix")}
    return {"method": request.param, "target": "logprob", **usual, **METHODS[request.param]}


def pushed(model, prompt, continuation, **options):
    """Tokens that an attribution pushes through the model, counted before its forward."""
    counts = []

    def count(module, args, given):
        counts.extend(given[name].numel() for name in ("input_ids", "decoder_input_ids") if name in given)

    hook = model.nn._module.register_forward_pre_hook(count, with_kwargs=True)
    model.attribute(prompt, continuation, **options)
    hook.remove()
    return sum(counts)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_tokens_pushed_through_the_model_are_those_of_the_formula(family):
    hf = tiny_model(family)
    model = whence.load(hf)
    prompt, continuation = list(range(4, 24)), list(range(30, 40))
    source, steps = len(prompt), len(continuation)
    # A vector needs no look-up in the embedding matrix; else that is one more token for each stack.
    shared = {
        "segments": "token",
        "sides": ("source", "prefix"),
        "target": "logprob",
        "progress": False,
        "baseline": torch.zeros(16),
    }
    features, row = (29, 30) if model.encoder_decoder else (29, 29)
    limits = {
        "occlusion": (source + steps + 1, {}),
        "lime": (66, {"n_samples": 64}),
        "kernel_shap": (66, {"n_samples": 64}),
        "shapley_sampling": (4 * (features - 1) + 3, {"n_permutations": 4}),
        "contextcite": (35, {"n_samples": 32, "removal": "replace"}),
        "loo_segments": (features + 2, {"removal": "replace"}),
    }
    for method, (rows, options) in limits.items():
        call = {"method": method, **options, **shared}
        tokens = pushed(model, prompt, continuation, **call)
        assert tokens <= rows * (source + steps), method
        # ... and not so few that the count is of something else.
        assert tokens >= (rows - 8) * row, method
        looked_up = pushed(model, prompt, continuation, **{**call, "baseline": 50})
        assert looked_up == tokens + 1 + model.encoder_decoder


def test_one_request_answers_for_all_steps_of_all_texts(model, options, monkeypatch):
    programs = []
    run = Model.run

    def noted(self, program, **data):
        programs.append(program.__name__)
        return run(self, program, **data)

    monkeypatch.setattr(Model, "run", noted)
    model.attribute([p for p, _ in TEXTS], [c for _, c in TEXTS], **options)
    deletes = options["method"] in ("contextcite", "loo_segments")
    assert programs == (["measure", "respond_deleted"] if deletes else ["measure", "embedding_rows", "respond"])


def test_two_texts_side_by_side_are_each_alone(model, options):
    both = model.attribute([p for p, _ in TEXTS], [c for _, c in TEXTS], **options)
    for out, (prompt, continuation) in zip(both, TEXTS, strict=True):
        alone = model.attribute(prompt, continuation, **options)
        # Lasso weighs small differences of odds by the length of the answer.
        np.testing.assert_allclose(out.scores.values, alone.scores.values, rtol=1e-5, atol=1e-5)
        assert out.verified
        assert alone.verified
        assert out.info["engine"].keys() == alone.info["engine"].keys()
        if "standard_error" in alone.extras:
            found, expected = (one.extras["standard_error"].values for one in (out, alone))
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_the_same_call_gives_the_same_and_another_seed_does_not(model, options):
    first, again, other = (model.attribute(PROMPT, CONTINUATION, seed=seed, **options) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.scores.values, again.scores.values)
    differs = (np.nan_to_num(first.scores.values) != np.nan_to_num(other.scores.values)).any()
    assert differs == (options["method"] in SAMPLING)


def test_a_span_of_steps(model, options):
    each = model.attribute(PROMPT, CONTINUATION, **options)
    span = model.attribute(PROMPT, CONTINUATION, **{**options, "steps": "whole"})
    assert span.scores.shape == (1, each.scores.shape[1])
    defined = ~np.isnan(each.scores.values).all(0)
    np.testing.assert_array_equal(~np.isnan(span.scores.values[0]), defined)
    if whence.METHODS[options["method"]].additive and options["method"] != "kernel_shap":
        total = np.nansum(each.scores.values, 0)[defined]
        np.testing.assert_allclose(span.scores.values[0, defined], total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("texts", [([9], [17]), ([9], [17, 8])])
def test_a_prompt_of_one_token(model, options, texts):
    out = model.attribute(*texts, **options)
    assert np.isfinite(out.scores.values[0, 0])
    assert out.verified
    if options["method"] in ("occlusion", "kernel_shap", "shapley_sampling") and len(texts[1]) == 1:
        alone = model.attribute(*texts, method="occlusion", target="logprob").scores.values[0, 0]
        # With one feature to remove, all of the difference is its.
        assert out.scores.values[0, 0] == pytest.approx(alone, rel=1e-5)


def test_where_nothing_may_be_removed_every_score_is_zero(model, options):
    tokens = 8 if model.encoder_decoder else 7
    out = model.attribute(PROMPT, CONTINUATION, keep=list(range(tokens)), **options)
    assert set(out.scores.values[~np.isnan(out.scores.values)]) == {0}
    assert out.info["engine"]["inert"] == tuple(range(tokens))
    assert all(token.fixed for token in out.tokens)
    assert out.verified


def test_only_one_side(model, options):
    out = model.attribute(PROMPT, CONTINUATION, **{**options, "sides": "prefix"})
    assert np.isnan(out.scores.values[:, :5]).all()
    assert np.isfinite(out.scores.values[2, 5:7]).all()


def test_what_it_costs_is_known_before(model, options):
    found = model.estimate(PROMPT, CONTINUATION, **options)
    assert found.derivatives == 0
    assert found.forwards > 3


def test_results_can_be_kept(model, options, tmp_path):
    out = model.attribute(PROMPT, CONTINUATION, **options)
    out.save(tmp_path / "one.json")
    kept = whence.load_attribution(tmp_path / "one.json")
    assert kept.info["engine"] == out.info["engine"]


@pytest.mark.parametrize("removal", ["replace", "delete"])
def test_every_way_of_removing_serves_every_method(model, options, removal):
    out = model.attribute(PROMPT, CONTINUATION, removal=removal, **options)
    assert out.verified
    assert np.nanmax(np.abs(out.scores.values)) > 1e-3


def test_knocking_out_serves_every_method(model, options):
    kept = {"keep": [4]} if model.encoder_decoder else {}
    out = model.attribute(PROMPT, CONTINUATION, removal="knockout", **kept, **options)
    assert out.verified
    first = 5 if model.encoder_decoder else 4
    # A step is read from inside the token before it.
    for step in range(3):
        assert np.isnan(out.scores.values[step, first + step])
        assert np.isfinite(out.scores.values[step, : first + step]).all()
