"""Other tokens in the input: resample against a plain forward pass from the replaced ids, on every family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import whence
from slow_reference import target_value
from tiny_models import FAMILIES, tiny_model
from whence.core.contract import AbstractMethod, Answer, Need

PROMPTS, TEXTS = [[7, 21, 9, 33, 12], [5, 40]], [[17, 8], [11, 4, 30]]
ROWS, TOP = 4, 32
seen = {}


@dataclass(frozen=True)
class Exchange(AbstractMethod):
    """Puts random ids into the text, and keeps what came of it."""

    rows: int | None = None

    name: ClassVar[str] = "exchange"
    title: ClassVar[str] = "random ids in the text"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = "F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = True

    def __call__(self, probe):
        words = probe.vocabulary
        count = len(words.ids)
        examples = torch.arange(count).repeat(ROWS)
        generator = torch.Generator().manual_seed(5)
        ids = torch.randint(4, 64, (len(examples), words.ids.shape[1]), generator=generator)
        ids = torch.where(words.present[examples], ids, words.ids[examples])
        seen["examples"] = examples
        seen["rows"] = [row[words.present[k]].tolist() for k, row in zip(examples, ids, strict=True)]
        seen["values"] = probe.resample(examples, ids, rows=self.rows)
        seen["top"] = probe.resample(examples, ids, rows=self.rows, top=TOP)
        return Answer(torch.zeros(probe.defined.shape))


def plain(hf, prompt, continuation, ids):
    """Log-probability and rank of every step's token when the model reads these ids, one row, no padding."""
    if hf.config.is_encoder_decoder:
        inputs = {"input_ids": [ids[: len(prompt)]], "decoder_input_ids": [ids[len(prompt) :]]}
        first = 0
    else:
        inputs, first = {"input_ids": [ids]}, len(prompt) - 1
    with torch.no_grad():
        logits = hf(**{name: torch.tensor(value) for name, value in inputs.items()}, use_cache=False).logits[0]
    at = [logits[first + step] for step in range(len(continuation))]
    values = [float(target_value("logprob", z, token)) for z, token in zip(at, continuation, strict=True)]
    ranks = [int((z > z[token]).sum()) for z, token in zip(at, continuation, strict=True)]
    return values, ranks


@pytest.mark.parametrize("family", FAMILIES)
def test_resample_is_a_plain_forward_pass_from_the_ids(family):
    # In float64 torch makes NaN of a row of attention that is masked all over, as those of padding on the left are.
    for dtype, count in ((torch.float64, 1), (torch.float32, 2)):
        prompts, texts = PROMPTS[:count], TEXTS[:count]
        hf = tiny_model(family, dtype=dtype)
        model = whence.load(hf)
        model.attribute(prompts, texts, method=Exchange(), target="logprob")
        assert len(seen["rows"]) == ROWS * len(prompts)
        some = set()
        for row, (example, ids) in enumerate(zip(seen["examples"], seen["rows"], strict=True)):
            values, ranks = plain(hf, prompts[example], texts[example], ids)
            steps = len(values)
            slack = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
            torch.testing.assert_close(seen["values"][row, :steps], torch.tensor(values, dtype=dtype), **slack)
            hits = [float(rank < TOP) for rank in ranks]
            assert seen["top"][row, :steps].tolist() == hits
            some |= set(hits)
        assert count == 1 or some == {0.0, 1.0}, "the test of ranks shows nothing"


@pytest.mark.parametrize("rows", [1, 4])
def test_chunks_make_no_difference(rows):
    model = whence.load(tiny_model("gpt2"))
    found = []
    for one in (None, rows):
        model.attribute(PROMPTS, TEXTS, method=Exchange(rows=one), target="logit")
        found.append(seen["values"])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_a_span_counts_its_steps():
    model = whence.load(tiny_model("gpt2", dtype=torch.float64))
    model.attribute(PROMPTS[1], TEXTS[1], method=Exchange(), target="logprob")
    apart = dict(seen)
    model.attribute(PROMPTS[1], TEXTS[1], method=Exchange(), target="logprob", steps=[(0, 3)])
    for name in ("values", "top"):
        torch.testing.assert_close(seen[name], apart[name].sum(1, keepdim=True))
    assert seen["top"].max() >= 1


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_logits_are_observed_at_all_positions(family):
    @dataclass(frozen=True)
    class Look(Exchange):
        def __call__(self, probe):
            seen.update(probe.observe(["logits"]))
            return Answer(torch.zeros(probe.defined.shape))

    hf = tiny_model(family)
    whence.load(hf).attribute(PROMPTS[0], TEXTS[0], method=Look())
    ids = {"input_ids": torch.tensor([[*PROMPTS[0], *TEXTS[0][:-1]]])}
    if hf.config.is_encoder_decoder:
        start = hf.config.decoder_start_token_id
        ids = {"input_ids": torch.tensor(PROMPTS[:1]), "decoder_input_ids": torch.tensor([[start, *TEXTS[0][:-1]]])}
    with torch.no_grad():
        torch.testing.assert_close(seen["logits"], hf(**ids, use_cache=False).logits, rtol=1e-4, atol=1e-5)
