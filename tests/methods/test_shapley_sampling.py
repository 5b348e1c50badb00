"""Shapley values by permutations against closed forms and all subsets."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

import whence
from perturbed import GameProbe, mean_vectors, pairs, shapley, without
from tiny_models import tiny_model

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40]


def subsets(value, features, column=0):
    def of(players):
        kept = torch.zeros(1, features)
        kept[0, sorted(players)] = 1
        return float(value(kept)[0, column])

    return of


@pytest.mark.parametrize("features", [1, 2, 4, 5])
def test_with_all_orders_values_are_exact(features):
    _, _, value = pairs(features, seed=features, link=np.tanh)
    probe = GameProbe(value, features)
    found = whence.ShapleySampling(n_permutations=120)(probe)
    np.testing.assert_allclose(found.scores[0, 0], shapley(subsets(value, features), list(range(features))), rtol=1e-9)
    assert found.each["exact"] == [True]
    assert found.each["n_permutations"] == [len(list(permutations(range(features))))]
    assert (found.error == 0).all()
    # No subset is asked for twice.
    assert len(probe.asked[0][1]) == 2**features


def test_pairs_need_but_an_order_and_its_reverse():
    # Of two features, one comes first in an order, the other in its reverse: the mean is half their common effect.
    a, b, value = pairs(9)
    found = whence.ShapleySampling(n_permutations=2)(GameProbe(value, 9))
    np.testing.assert_allclose(found.scores[0, 0], a + (b.sum(0) + b.sum(1)) / 2, rtol=1e-9)
    alone = whence.ShapleySampling(n_permutations=2, antithetic=False)(GameProbe(value, 9))
    assert np.abs(alone.scores[0, 0].numpy() - a - (b.sum(0) + b.sum(1)) / 2).max() > 0.1


@pytest.mark.parametrize(("antithetic", "count"), [(True, 25), (False, 25)])
def test_drawn_orders_are_within_their_errors(antithetic, count):
    _, _, value = pairs(8, seed=2, link=lambda x: np.tanh(x) + 0.1 * x**3)
    seen = [3, 8]
    game = lambda kept: torch.cat([value(kept * (torch.arange(8) < n)) for n in seen], 1)  # noqa: E731
    expected = np.zeros((2, 8))
    for column, n in enumerate(seen):
        expected[column, :n] = shapley(subsets(game, 8, column), list(range(n)))
    method = whence.ShapleySampling(n_permutations=count, antithetic=antithetic)
    found = [method(GameProbe(game, 8, seen=seen, seed=seed)) for seed in range(60)]
    scores = np.array([one.scores[0].numpy() for one in found])
    errors = np.array([one.error[0].numpy() for one in found])
    defined = expected != 0
    spread = scores.std(0)[defined]
    np.testing.assert_allclose(np.sqrt((errors**2).mean(0))[defined], spread, rtol=0.35)
    assert (np.abs(scores.mean(0) - expected)[defined] < 4 * spread / np.sqrt(60)).all()
    np.testing.assert_allclose(scores.sum(-1), np.broadcast_to(expected.sum(-1), (60, 2)), rtol=1e-9)
    assert (scores[:, ~defined] == 0).all()


def test_a_fixed_feature_is_always_there():
    _, _, value = pairs(5, seed=8, link=np.tanh)
    found = whence.ShapleySampling()(GameProbe(value, 5, fixed=[0]))
    expected = shapley(lambda kept: subsets(value, 5)(kept | {0}), [1, 2, 3, 4])
    np.testing.assert_allclose(found.scores[0, 0], [0, *expected], rtol=1e-9)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_values_are_those_of_the_untraced_model(family):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    groups = [[0, 1], [2, 3, 4]]
    both = model.encoder_decoder
    out = model.attribute(
        PROMPT, CONTINUATION, method="shapley_sampling", target="logprob", baseline="mean", segments=groups
    )
    vectors = mean_vectors(model)
    # The decoder's first token is fixed, so that four features are left, and 24 orders.
    groups = [*groups, *([k] for k in range(5 + both, 7 + both))]
    for step in range(3):
        players = list(range(2 + step))

        def value(kept, players=players, step=step):
            gone = {token for k in players if k not in kept for token in groups[k]}
            return without(hf, PROMPT, CONTINUATION, gone, vectors)[step]

        where = [k + (both and k >= 2) for k in players]
        expected = shapley(value, players)
        np.testing.assert_allclose(out.scores.values[step, where], expected, rtol=1e-5, atol=1e-6)
    assert out.info["engine"]["exact"]
    assert out.verified


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"removal": "erase"}, "unknown way of removing a feature"),
        ({"n_permutations": 1}, "n_permutations is at least 2, not 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.ShapleySampling(**options)


# ---- Banzhaf values, and stopping early


def banzhaf(value, features):
    """The mean effect of each feature over all subsets of the others."""
    found = np.zeros(features)
    for number in range(2**features):
        kept = torch.tensor([[float(number >> k & 1) for k in range(features)]])
        found += np.where(kept[0].numpy() > 0, 1, -1) * float(value(kept)[0, 0])
    return found / 2 ** (features - 1)


@pytest.mark.parametrize("features", [1, 2, 4])
def test_banzhaf_values_of_few_features_are_exact(features):
    _, _, value = pairs(features, seed=features, link=np.tanh)
    found = whence.ShapleySampling(n_permutations=20, value="banzhaf")(GameProbe(value, features))
    np.testing.assert_allclose(found.scores[0, 0], banzhaf(value, features), rtol=1e-9)
    assert found.each["exact"] == [True]
    assert (found.error == 0).all()
    assert "completeness" not in {gap.name for gap in found.gaps}


def test_drawn_banzhaf_values_are_within_their_errors():
    _, _, value = pairs(8, seed=2, link=lambda x: np.tanh(x) + 0.1 * x**3)
    expected = banzhaf(value, 8)
    found = [
        whence.ShapleySampling(n_permutations=12, value="banzhaf")(GameProbe(value, 8, seed=seed)) for seed in range(60)
    ]
    scores = np.array([one.scores[0, 0].numpy() for one in found])
    errors = np.array([one.error[0, 0].numpy() for one in found])
    assert np.abs(scores.mean(0) - expected).max() < 4 * (scores.std(0) / 60**0.5).max()
    assert 0.7 < (errors.mean(0) / scores.std(0)).mean() < 1.4
    assert {one.each["n_samples"][0] for one in found} == {12 * 8 + 2}
    assert not np.allclose(expected, shapley(subsets(value, 8), list(range(8))), rtol=1e-3)


def test_orders_are_drawn_until_the_errors_are_small():
    _, _, value = pairs(8, seed=2, link=lambda x: np.tanh(x) + 0.1 * x**3)
    all_of_them = whence.ShapleySampling(n_permutations=40)(GameProbe(value, 8))
    worst = float(all_of_them.error.max())
    probe = GameProbe(value, 8)
    early = whence.ShapleySampling(n_permutations=40, max_se=1.6 * worst)(probe)
    count = early.each["n_permutations"][0]
    assert count % 4 == 0
    assert count < 40
    assert len(probe.asked) == count // 4
    assert float(early.error.max()) <= 1.6 * worst
    same = whence.ShapleySampling(n_permutations=count)(GameProbe(value, 8))
    np.testing.assert_allclose(early.scores, same.scores, rtol=1e-12)
    late = whence.ShapleySampling(n_permutations=40, max_se=worst / 100)(GameProbe(value, 8))
    np.testing.assert_allclose(late.scores, all_of_them.scores, rtol=1e-12)


def test_each_of_a_batch_stops_on_its_own():
    model = whence.load(tiny_model("llama"))
    prompts, texts = [PROMPT, PROMPT[:3]], [CONTINUATION, CONTINUATION[:1]]
    options = {
        "method": "shapley_sampling",
        "baseline": "mean",
        "target": "logprob",
        "n_permutations": 30,
        "max_se": 0.4,
    }
    together = model.attribute(prompts, texts, **options)
    for out, prompt, text in zip(together, prompts, texts, strict=True):
        alone = model.attribute(prompt, text, **options)
        np.testing.assert_allclose(out.scores.values, alone.scores.values, atol=1e-5)
        assert out.info["engine"]["n_permutations"] == alone.info["engine"]["n_permutations"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": "owen"}, "banzhaf"),
        ({"max_se": 0.0}, "greater than 0"),
        ({"max_se": 0.1, "value": "banzhaf"}, "Shapley values only"),
        ({"antithetic": False, "value": "banzhaf"}, "about orders"),
    ],
)
def test_options_of_banzhaf_and_stopping_that_cannot_be(options, message):
    with pytest.raises(whence.WhenceError, match=message):
        whence.ShapleySampling(**options)
