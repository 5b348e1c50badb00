"""Kernel SHAP against Shapley values from the values of all subsets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from perturbed import GameProbe, mean_vectors, pairs, shapley, without
from tiny_models import tiny_model
from whence.methods.perturbation.kernel_shap import shapley_kernel
from whence.methods.perturbation.masks import all_masks

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def subsets(value, column=0):
    """The game as a function of the set of kept features."""

    def of(players):
        kept = torch.zeros(1, value.features)
        kept[0, sorted(players)] = 1
        return float(value(kept)[0, column])

    return of


def test_all_subsets_are_all_subsets():
    masks = all_masks(np.array([True, False, True]))
    assert masks.tolist() == [[False, True, False], [True, True, False], [False, True, True], [True, True, True]]


@pytest.mark.parametrize("features", [1, 2, 5, 8])
def test_with_all_subsets_values_are_exact(features):
    a, b, linear = pairs(features, seed=features)
    # The Shapley value of pairs is closed: half of each.
    found = whence.KernelShap()(GameProbe(linear, features))
    np.testing.assert_allclose(found.scores[0, 0], a + (b.sum(0) + b.sum(1)) / 2, rtol=1e-9)
    # Any other game is enumerated.
    _, _, value = pairs(features, seed=features, link=lambda x: np.tanh(x) + x**3)
    value.features = features
    found = whence.KernelShap()(GameProbe(value, features))
    expected = shapley(subsets(value), list(range(features)))
    np.testing.assert_allclose(found.scores[0, 0], expected, rtol=1e-9, atol=1e-9)
    assert found.each["exact"] == [True]
    assert (found.error == 0).all()
    assert (found.gaps[1].gap <= 1e-12 * found.gaps[1].scale).all()


def test_every_step_is_the_game_of_what_it_sees():
    _, _, value = pairs(8, seed=1, link=np.tanh)
    seen = [1, 4, 8]
    game = lambda kept: torch.cat([value(kept * (torch.arange(8) < count)) for count in seen], 1)  # noqa: E731
    game.features = 8
    # One feature is fixed: it is always there.
    probe = GameProbe(game, 8, seen=seen, fixed=[2])
    found = whence.KernelShap()(probe)
    assert len(probe.asked) == 1
    assert len(probe.asked[0][1]) == 2**7
    for column, count in enumerate(seen):
        of = subsets(game, column)
        players = [k for k in range(count) if k != 2]
        expected = np.zeros(8)
        expected[players] = shapley(lambda kept, of=of: of(kept | {2}), players)
        np.testing.assert_allclose(found.scores[0, column], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("antithetic", [True, False])
def test_with_drawn_rows_values_are_within_their_errors(antithetic):
    _, _, value = pairs(9, seed=6, link=np.tanh)
    value.features = 9
    seen = [6, 9]
    game = lambda kept: torch.cat([value(kept * (torch.arange(9) < count)) for count in seen], 1)  # noqa: E731
    game.features = 9
    expected = np.zeros((2, 9))
    for column, count in enumerate(seen):
        expected[column, :count] = shapley(subsets(game, column), list(range(count)))
    found = [
        whence.KernelShap(n_samples=400, antithetic=antithetic)(GameProbe(game, 9, seen=seen, seed=seed))
        for seed in range(40)
    ]
    scores = np.array([one.scores[0].numpy() for one in found])
    errors = np.array([one.error[0].numpy() for one in found])
    assert not any(one.each["exact"][0] for one in found)
    defined = expected != 0
    spread = scores.std(0)[defined]
    np.testing.assert_allclose(errors.mean(0)[defined], spread, rtol=0.35)
    # The mean over seeds is 40 times as many rows.
    assert (np.abs(scores.mean(0) - expected)[defined] < 4 * spread / np.sqrt(40)).all()
    totals = scores.sum(-1)
    np.testing.assert_allclose(totals, np.broadcast_to(expected.sum(-1), totals.shape), rtol=1e-9)


def test_weights_of_drawn_and_of_all_rows_are_those_of_the_theorem():
    from math import comb

    features = 6
    theorem = [(features - 1) / (comb(features, k) * k * (features - k)) for k in range(1, features)]
    np.testing.assert_allclose(shapley_kernel(features, every=True), [0, *theorem, 0])
    # Among drawn rows every number of kept features is as likely, one of them 1 / C(K, k) of that.
    drawn = shapley_kernel(features, every=False)
    law = np.array([1 / (features + 1) / comb(features, k) for k in range(features + 1)])
    np.testing.assert_allclose(drawn * law, [0, *theorem, 0])


@pytest.mark.parametrize("family", ["gpt2", "marian"])
def test_values_are_those_of_all_subsets_of_the_untraced_model(family):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    groups = [[0, 1], [2], [3, 4]]
    out = model.attribute(
        PROMPT, CONTINUATION, method="kernel_shap", target="logprob", baseline="mean", segments=groups, keep="none"
    )
    vectors = mean_vectors(model)
    rest = 3 if model.encoder_decoder else 2
    groups = [*groups, *([5 + k] for k in range(rest))]
    values = {}

    def value(kept):
        key = frozenset(kept)
        if key not in values:
            gone = {token for k, group in enumerate(groups) if k not in kept for token in group}
            values[key] = without(hf, PROMPT, CONTINUATION, gone, vectors)
        return values[key]

    for step in range(3):
        players = list(range(3 + step + model.encoder_decoder))
        expected = shapley(lambda kept, step=step: value(kept)[step], players)
        np.testing.assert_allclose(out.scores.values[step, players], expected, rtol=1e-5, atol=1e-6)
        assert out.info["engine"]["empty"][step] == pytest.approx(value(set(range(len(players), len(groups))))[step])
    assert {check.name for check in out.checks} == {"no-op", "completeness"}
    assert out.verified


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"removal": "erase"}, "unknown way of removing a feature"),
        ({"n_samples": 3}, "n_samples is at least 4, not 3"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.KernelShap(**options)
