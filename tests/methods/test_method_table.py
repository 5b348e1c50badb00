"""The method table: every method on every family, alone and in a batch, defined where it should be and nowhere else."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import whence
from benchmarks.parity import CALLS
from tiny_models import FAMILIES, is_encoder_decoder, tiny_model, tiny_tokenizer

# Two texts of different length: the shorter is padded in a batch.
PROMPTS = ([7, 21, 9, 33, 12, 5], [30, 8, 14])
CONTINUATIONS = ([17, 8, 40], [11, 25])
# (method, family): why there are no scores. Each is an error that says so.
ABSENT: dict[tuple[str, str], str] = {
    (method, family): "residual stream .* passes through norms"
    for method in ("direct_logit", "alti_logit")
    for family in ("bart", "marian")
}


@cache
def model_of(family):
    """One model of each family for all methods: they leave it as it was."""
    return whence.load(tiny_model(family), tokenizer=tiny_tokenizer(family))


def test_every_method_is_in_the_table():
    assert set(CALLS) == set(whence.METHODS)


def expected(family, out, row):
    """Which cells mean something, by counting: a step sees the source and what was generated before it."""
    sources, steps = len(PROMPTS[row]), len(CONTINUATIONS[row])
    width = sources + steps + is_encoder_decoder(family) - (not is_encoder_decoder(family))
    last = sources + np.arange(steps) - (not is_encoder_decoder(family))
    seen = np.arange(width)[None, :] <= last[:, None]
    return seen[:, : len(out.tokens)]


@pytest.mark.parametrize("method", list(CALLS))
@pytest.mark.parametrize("family", FAMILIES)
def test_alone_and_in_a_batch(family, method):
    model = model_of(family)
    # What is usual for a method is left aside: all are asked alike.
    options = {**CALLS[method], "method": method, "progress": False}
    options |= {"segments": "token", "steps": "generated", "sides": ("source", "prefix")}
    # The probability of random continuations is next to nothing, and so would the scores be.
    options |= {"target": "logprob"} if whence.METHODS[method].targets is None else {}
    if (method, family) in ABSENT:
        with pytest.raises(whence.UnsupportedError, match=ABSENT[method, family]):
            model.attribute(PROMPTS[0], CONTINUATIONS[0], **options)
        return
    together = model.attribute(list(PROMPTS), list(CONTINUATIONS), **options)
    for row, (prompt, continuation) in enumerate(zip(PROMPTS, CONTINUATIONS, strict=True)):
        alone = model.attribute(prompt, continuation, **options)
        values = alone.scores.values
        seen = expected(family, alone, row)
        assert values.shape[:2] == seen.shape
        wanted = np.zeros_like(seen) if method == "none" else seen
        cells = np.isfinite(values).reshape(*seen.shape, -1)
        np.testing.assert_array_equal(cells.all(-1), wanted)
        np.testing.assert_array_equal(cells.any(-1), wanted)
        assert method == "none" or np.abs(values[np.isfinite(values)]).max() > 1e-6
        size = max(np.nanmax(np.abs(values)), 1.0) if method != "none" else 1.0
        np.testing.assert_allclose(together[row].scores.values, values, rtol=0, atol=1e-5 * size)
        assert [(c.name, c.passed) for c in together[row].checks] == [(c.name, c.passed) for c in alone.checks]
