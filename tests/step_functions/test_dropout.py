"""Runs under dropout against the untraced model with the masks written into it by hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from slow_reference import outputs_replaced
from tiny_models import tiny_model
from whence.core.random import stream

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40, 11]
LONGER, MORE = [5, 30, 9, 33, 12, 6, 21], [44, 8, 13]
GIVEN = {"target": "mc_dropout_prob_avg", "rate": 0.3, "n_passes": 3}


def numbers(seed, item, sample, *coordinates):
    """The documented draw, in numpy's unsigned words: SplitMix64 of the seed and the coordinates one after another."""
    word = np.uint64(int(stream(seed, item, sample).integers((1 << 63) - 1)))
    shape = np.broadcast_shapes(*(one.shape for one in coordinates))
    found = np.full(shape, word)
    with np.errstate(over="ignore"):
        for one in coordinates:
            found = found + one.astype(np.uint64) + np.uint64(1) + np.uint64(0x9E3779B97F4A7C15)
            found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            found = found ^ (found >> np.uint64(31))
    return (found >> np.uint64(11)).astype(np.float64) / 2**53


def test_the_numbers_are_uniform():
    drawn = numbers(0, "mc_dropout x", 0, np.arange(400)[:, None], np.arange(250)[None])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    expected = drawn.size / 20
    # 19 degrees of freedom; 43.8 is exceeded once in a thousand.
    assert ((counts - expected) ** 2 / expected).sum() < 43.8
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.02


def by_hooks(hf, ids, seed, sample, rate):
    """Probabilities of a pass of GPT-2 whose embeddings and sublayers lose values; attention is left alone."""

    def masked(site):
        def drop(value):
            units = np.arange(value.shape[-1])[None]
            keep = numbers(seed, f"mc_dropout {site}", sample, np.arange(value.shape[1])[:, None], units) >= rate
            return value * torch.from_numpy(keep) / (1 - rate)

        return drop

    swaps = [(hf.transformer.drop, masked("blocks.0.resid_pre"))]
    for layer, block in enumerate(hf.transformer.h):
        swaps += [(block.attn, masked(f"blocks.{layer}.attn_out")), (block.mlp, masked(f"blocks.{layer}.mlp_out"))]
    with torch.no_grad(), outputs_replaced(swaps):
        return hf(torch.tensor([ids])).logits[0].softmax(-1)


def gpt2(**options):
    return tiny_model("gpt2", dtype=torch.float64, **options)


def test_passes_equal_the_model_with_masks_written_into_it():
    hf = gpt2(attn_pdrop=0.0, resid_pdrop=0.3, embd_pdrop=0.3)
    names = ["mc_dropout_prob_avg:n_passes=3", "mc_dropout_prob_std:n_passes=3", "mc_dropout_zscore:n_passes=3"]
    model = whence.load(hf)
    outs = model.attribute([PROMPT, LONGER], [CONTINUATION, MORE], method="none", step_scores=names, seed=4)
    for out, prompt, text in zip(outs, (PROMPT, LONGER), (CONTINUATION, MORE), strict=True):
        ids = prompt + text
        passes = []
        for sample in range(3):
            p = by_hooks(hf, ids, 4, sample, 0.3)
            passes.append([float(p[len(prompt) - 1 + k, token]) for k, token in enumerate(text)])
        clean = hf(torch.tensor([ids])).logits[0].softmax(-1)
        own = np.array([float(clean[len(prompt) - 1 + k, token].detach()) for k, token in enumerate(text)])
        mean, spread = np.mean(passes, 0), np.std(passes, 0, ddof=1)
        np.testing.assert_allclose(out.step_scores[names[0]], mean, rtol=1e-6)
        np.testing.assert_allclose(out.step_scores[names[1]], spread, rtol=1e-5)
        np.testing.assert_allclose(out.step_scores[names[2]], (own - mean) / spread, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "marian"])
def test_gradients_with_the_masks_held_are_finite_differences(family):
    model = whence.load(tiny_model(family, dtype=torch.float64))
    exact = model.attribute(PROMPT, CONTINUATION, **GIVEN)
    finite = model.attribute(PROMPT, CONTINUATION, derivative="finite", **GIVEN)
    scale = np.nanmax(np.abs(exact.scores.values))
    np.testing.assert_allclose(exact.scores.values / scale, finite.scores.values / scale, atol=1e-3)
    assert exact.verified


@pytest.mark.parametrize("removal", ["delete", "knockout"])
def test_tokens_are_taken_out_of_every_pass(removal):
    """A row without a token is the text without it, under the masks of the text as it stands then."""
    model = whence.load(gpt2(attn_pdrop=0.0))
    given = {"target": "mc_dropout_prob_avg", "n_passes": 3, "seed": 2}
    out = model.attribute(
        PROMPT, CONTINUATION, method="occlusion", removal=removal, keep="none", steps=0, sides="source", **given
    )
    whole = model.attribute(PROMPT, CONTINUATION, method="none", step_scores=["mc_dropout_prob_avg:n_passes=3"], seed=2)
    first = float(whole.step_scores["mc_dropout_prob_avg:n_passes=3"][0])
    rest = model.attribute(
        PROMPT[1:], CONTINUATION, method="none", step_scores=["mc_dropout_prob_avg:n_passes=3"], seed=2
    )
    if removal == "delete":
        lost = first - float(rest.step_scores["mc_dropout_prob_avg:n_passes=3"][0])
        assert out.scores.values[0, 0] == pytest.approx(lost, rel=1e-5, abs=1e-9)
    assert out.verified
    assert np.abs(np.nan_to_num(out.scores.values)).max() > 1e-6


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion", "kernel_shap"])
def test_batch_equals_each_alone(method):
    model = whence.load(tiny_model("t5", dtype=torch.float64))
    options = {"integrated_gradients": {"n_steps": 3}, "kernel_shap": {"n_samples": 16}}.get(method, {})
    together = model.attribute([PROMPT, LONGER], [CONTINUATION, MORE], method=method, **GIVEN, **options)
    alone = model.attribute(PROMPT, CONTINUATION, method=method, **GIVEN, **options)
    np.testing.assert_allclose(together[0].scores.values, alone.scores.values, atol=1e-6)


def test_the_seed_chooses_the_masks_and_chunks_do_not():
    model = whence.load(tiny_model("llama"))
    first, again, other = (
        model.attribute(PROMPT, CONTINUATION, method="none", step_scores=["mc_dropout_prob_avg"], rate=0.2, seed=seed)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(*(one.step_scores["mc_dropout_prob_avg"] for one in (first, again)))
    assert not np.allclose(*(one.step_scores["mc_dropout_prob_avg"] for one in (first, other)))


def test_the_model_stays_in_the_mode_it_was_in():
    hf = gpt2()
    whence.load(hf).attribute(PROMPT, CONTINUATION, **GIVEN)
    assert not any(module.training for module in hf.modules())


def test_what_cannot_be_asked():
    model = whence.load(tiny_model("llama"))
    with pytest.raises(whence.InputError, match="trained without dropout; give a rate"):
        model.attribute(PROMPT, CONTINUATION, target="mc_dropout_prob_avg")
    for options, message in (({"rate": 1.5}, "rate is a share"), ({"n_passes": 1}, "at least 2")):
        with pytest.raises(whence.InputError, match=message):
            model.attribute(PROMPT, CONTINUATION, **{**GIVEN, **options})
    with pytest.raises(whence.InputError, match="no target"):
        model.attribute(PROMPT, CONTINUATION, target="mc_dropout_zscore", rate=0.1)
    with pytest.raises(whence.UnsupportedError, match="Take removal='replace' or 'delete'"):
        model.attribute(PROMPT, CONTINUATION, method="occlusion", removal="knockout", **GIVEN)
    with pytest.raises(whence.UnsupportedError, match="Leave layer= out"):
        model.attribute(PROMPT, CONTINUATION, layer=0, **GIVEN)
