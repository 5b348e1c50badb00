"""On texts whose evidence is known, integrated gradients find it, and taking words away beats chance."""

from __future__ import annotations

import pytest

import whence
from benchmarks.evidence import measure
from whence.models import bundled


@pytest.mark.parametrize("name", bundled.NAMES)
def test_integrated_gradients_put_gold_evidence_in_the_top_three(name):
    model = whence.load(f"whence/{name}")
    examples = list(bundled.examples(name, 25, seed=11))
    methods = ["integrated_gradients", "random"]
    found, chance = measure(model, methods, examples, target="probability", seed=0)
    assert found.top3.mean >= 0.8
    assert found.top3.low > chance.top3.mean


def test_methods_that_take_words_away_beat_chance():
    model = whence.load("whence/en-it")
    examples = list(bundled.examples("en-it", 8, seed=11))
    methods = [name for name in whence.METHODS if ".perturbation." in whence.METHODS.paths()[name]]
    *found, chance = measure(model, [*methods, "random"], examples, target="probability", seed=0)
    assert [one.method for one in found if one.mrr.mean <= chance.mrr.mean] == []
