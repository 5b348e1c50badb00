"""observe and respond, asked through a method of one's own, against plain hooks on the untraced model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import whence
from slow_reference import embedding_modules, outputs_replaced, step_inputs, target_value
from tiny_models import tiny_model
from whence.core.contract import AbstractMethod, Answer, Need

PROMPT, CONTINUATION = [7, 21, 9, 33], [17, 8, 40]
seen = {}


@dataclass(frozen=True)
class LeaveOneOut(AbstractMethod):
    """The drop of the target when one feature is replaced: a method as a user would write it."""

    rows: int = 3
    site: str = ""

    name: ClassVar[str] = "leave_one_out"
    title: ClassVar[str] = "drop when one feature is replaced"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = "K F"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    auto_baseline: ClassVar[str] = "dedicated"

    def __call__(self, probe):
        count, features = probe.here.shape[0], probe.feature_count
        examples = torch.arange(count).repeat_interleave(features)
        masks = torch.eye(features, dtype=torch.bool).repeat(count, 1)
        low = probe.respond(examples, masks, rows=self.rows)
        drop = probe.here[:, None, :] - low.view(count, features, -1)
        if self.site:
            seen.update(probe.observe([self.site]))
        return Answer(drop.transpose(1, 2))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bloom", "t5", "marian"])
def test_respond_equals_replacing_one_embedding_at_a_time(family):
    hf = tiny_model(family, dtype=torch.float64)
    model = whence.load(hf)
    rows = {stack: found["rows"][0] for stack, found in model.embedding_rows([11]).items()}
    out = model.attribute(PROMPT, CONTINUATION, method=LeaveOneOut(), baseline=11, target="logprob", keep="none")
    streams = [PROMPT, [0] * 3] if model.encoder_decoder else [[0] * 6]
    offset = 0
    for stream, (module, ids, vector) in enumerate(zip(embedding_modules(hf), streams, rows.values(), strict=True)):
        for place in range(len(ids)):

            def replaced(value, place=place, vector=vector):
                value = value.clone()
                if place < value.shape[1]:
                    value[:, place] = vector.to(value)
                return value

            for step, token in enumerate(CONTINUATION):
                inputs = step_inputs(hf, PROMPT, CONTINUATION, step)
                with torch.no_grad():
                    high = target_value("logprob", hf(**inputs, use_cache=False).logits[0, -1], token)
                    with outputs_replaced([(module, replaced)]):
                        low = target_value("logprob", hf(**inputs, use_cache=False).logits[0, -1], token)
                found = out.scores.values[step, offset + place]
                if np.isnan(found):
                    assert high == low, (stream, place, step)
                else:
                    assert found == pytest.approx(float(high - low), rel=1e-4, abs=1e-7)
        offset += len(ids)


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_respond_does_not_depend_on_how_rows_are_chunked(rows):
    model = whence.load(tiny_model("gpt2"))
    prompts, texts = [[7, 21, 9, 33], [5, 6]], [[17, 8], [4, 4, 9]]
    whole = model.attribute(prompts, texts, method=LeaveOneOut(rows=64), target="logit")
    parts = model.attribute(prompts, texts, method=LeaveOneOut(rows=rows), target="logit")
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a.scores.values, b.scores.values, rtol=1e-4, atol=1e-5)


def test_observe_reads_the_clean_run():
    hf = tiny_model("llama")
    model = whence.load(hf)
    model.attribute(PROMPT, CONTINUATION, method=LeaveOneOut(site="blocks.1.resid_post"))
    with torch.no_grad():
        states = hf.model(
            input_ids=torch.tensor([[*PROMPT, *CONTINUATION[:-1]]]), output_hidden_states=True, use_cache=False
        ).hidden_states
        expected = hf.model.norm(seen["blocks.1.resid_post"])
    torch.testing.assert_close(expected, states[-1], rtol=1e-5, atol=1e-5)


def test_observing_an_unknown_site_names_the_nearest():
    model = whence.load(tiny_model("llama"))
    with pytest.raises(whence.UnknownNameError, match=r"blocks\.1\.resid_post"):
        model.attribute(PROMPT, CONTINUATION, method=LeaveOneOut(site="blocks.1.residual_post"))


def test_a_method_of_ones_own_is_priced_before_it_runs():
    model = whence.load(tiny_model("llama"))
    # Three prompt tokens and two of the prefix: one row each, and one for the clean input.
    assert model.estimate([5, 6, 7], CONTINUATION, method=LeaveOneOut()).forwards == 5 + 1


def test_the_output_itself_can_be_observed():
    hf = tiny_model("llama")
    whence.load(hf).attribute(PROMPT, CONTINUATION, method=LeaveOneOut(site="logits"))
    with torch.no_grad():
        logits = hf(torch.tensor([[*PROMPT, *CONTINUATION[:-1]]])).logits
    torch.testing.assert_close(seen["logits"], logits, rtol=1e-5, atol=1e-5)
