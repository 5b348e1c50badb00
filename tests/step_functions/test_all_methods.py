"""Every method takes every kind of number that it can explain: contrasts of each kind, counts, runs under dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import whence
from benchmarks.parity import CALLS
from tiny_models import tiny_model
from whence.core.contract import Need

PROMPT, CONTINUATION = [7, 21, 9, 33, 12], [17, 8, 40, 11]
LONGER, MORE = [5, 30, 9, 33, 12, 6, 21], [44, 8, 13, 19]
ANY = [name for name in CALLS if whence.METHODS[name].targets is None]
PERTURBING = [name for name in ANY if Need.GRADIENTS not in whence.METHODS[name].needs]
SAME_RUN = ([17, 25, 40, 11], [44, 8, 22, 19])
SOURCES = ({"source": [7, 50, 9, 33, 12]}, {"source": [5, 30, 9, 33, 12, 50, 21]})
OWN_RUN = tuple({"continuation": text, "evaluate": "own"} for text in SAME_RUN)
# What changes the text itself, or runs its own rows beside, cannot run the contrast beside.
ALONE = {"contextcite", "deeplift", "loo_segments", "reagent"}


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def model(request):
    return whence.load(tiny_model(request.param, dtype=torch.float64))


def attributed(model, method, **options):
    """The two texts in a batch and the first of them alone, without what some methods ask by themselves."""
    given = {"progress": False, **CALLS[method], **options}
    given.setdefault("steps", None)
    several = {**given, "contrast": list(given["contrast"])} if "contrast" in given else given
    one = {**given, "contrast": given["contrast"][0]} if "contrast" in given else given
    together = model.attribute([PROMPT, LONGER], [CONTINUATION, MORE], method=method, **several)
    return together, model.attribute(PROMPT, CONTINUATION, method=method, **one)


def holds(together, alone):
    scores = alone.scores.values
    np.testing.assert_allclose(
        together[0].scores.values, scores, atol=1e-5 * max(1.0, float(np.nanmax(np.abs(scores))))
    )
    known = scores[np.isfinite(scores)]
    assert known.size
    assert np.abs(known).max() > 1e-9


@pytest.mark.parametrize("method", ANY)
@pytest.mark.parametrize("target", ["contrast_logits_diff", "contrast_prob_diff:log=true"])
def test_a_foil_in_the_same_run(model, method, target):
    holds(*attributed(model, method, target=target, contrast=SAME_RUN))


@pytest.mark.parametrize("method", ANY)
def test_another_source(model, method):
    holds(*attributed(model, method, target="kl_divergence", contrast=SOURCES))


@pytest.mark.parametrize("method", ANY)
def test_a_foil_in_its_own_run(model, method):
    if method in ALONE:
        with pytest.raises(whence.UnsupportedError, match=r"grad='main'"):
            attributed(model, method, target="contrast_logits_diff", contrast=OWN_RUN)
        return
    holds(*attributed(model, method, target="contrast_logits_diff", contrast=OWN_RUN))


@pytest.mark.parametrize("method", ANY)
def test_runs_under_dropout(model, method):
    given = {"target": "mc_dropout_prob_avg", "n_passes": 2, "rate": 0.2}
    if "steps" in whence.METHODS[method].defaults:
        given["steps"] = 0
    if method == "deeplift":
        with pytest.raises(whence.UnsupportedError, match="further rows beside"):
            attributed(model, method, **given)
        return
    holds(*attributed(model, method, **given))


@pytest.mark.parametrize("method", PERTURBING)
def test_counts_are_targets_of_perturbation_methods(model, method):
    steps = 0 if "steps" in whence.METHODS[method].defaults else None
    holds(*attributed(model, method, target="rank", steps=steps))


def test_all_numbers_of_one_run_take_one_pass():
    """Step scores cost nothing beside the pass that there is."""
    hf = tiny_model("llama")
    calls = []
    hf.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))
    model = whence.load(hf)
    names = [name for name, one in whence.STEP_FUNCTIONS.items() if not one.needs]
    assert len(names) > 8
    model.attribute(PROMPT, CONTINUATION, method="none", step_scores=names)
    assert len(calls) == 1
    paired = [name for name, one in whence.STEP_FUNCTIONS.items() if one.needs == {"contrast"}]
    model.attribute(PROMPT, CONTINUATION, method="none", step_scores=[*names, *paired], contrast=SAME_RUN[0])
    assert len(calls) == 2
    # A run of the contrast's own is one more.
    model.attribute(PROMPT, CONTINUATION, method="none", step_scores=["kl_divergence", "jsd"], contrast=SOURCES[0])
    assert len(calls) == 4
