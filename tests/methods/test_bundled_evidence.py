"""On texts whose evidence is known, integrated gradients find it, and every method beats chance."""

from __future__ import annotations

import pytest

import whence
from benchmarks.evidence import measure, scoring_methods
from whence.models import bundled


@pytest.mark.parametrize("name", bundled.NAMES)
def test_integrated_gradients_put_gold_evidence_in_the_top_three(name):
    model = whence.load(f"whence/{name}")
    examples = list(bundled.examples(name, 25, seed=11))
    methods = ["integrated_gradients", "random"]
    found, chance = measure(model, methods, examples, target="probability", seed=0)
    assert found.top3.mean >= 0.8
    assert found.top3.low > chance.top3.mean


def test_every_method_beats_chance():
    model = whence.load("whence/stories")
    examples = list(bundled.examples("stories", 3, seed=11))
    found = measure(model, [*scoring_methods(), "random"], examples, target="probability", seed=0)
    *methods, chance = found
    assert [one.method for one in methods if one.mrr.mean <= chance.mrr.mean] == []
