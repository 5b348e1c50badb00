"""Rows with features removed, as the probe answers them, held against the untraced model one row at a time.

What is compared is every step of every row in float64; and in float32 two texts of different length side by side
with each alone. (Transformers itself makes no numbers of padding in float64.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

import whence
from whence.core.contract import AbstractMethod, Answer, Need

TEXTS = (([7, 21, 9, 33, 12], [17, 8, 40]), ([5, 30, 11], [22, 6]))
ROWS = 4
asked: dict[str, Any] = {}


@dataclass(frozen=True)
class Rows(AbstractMethod):
    """Keeps what `respond` answers to masks that a test prepared."""

    removal: str = "replace"
    rows: int | None = None
    layers: Any = None
    heads: Any = None

    name: ClassVar[str] = "rows"
    title: ClassVar[str] = "rows"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = "n F"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    layer: ClassVar[bool] = True
    auto_baseline: ClassVar[str] = "dedicated"

    @property
    def replaces(self):
        return self.removal == "replace"

    def __call__(self, probe):
        masks = [torch.nn.functional.pad(one, (0, probe.feature_count - one.shape[1])) for one in asked["masks"]]
        asked["probe"] = probe
        asked["values"] = probe.respond(
            torch.arange(len(masks)).repeat_interleave(len(masks[0])),
            torch.cat(masks),
            removal=self.removal,
            layers=self.layers,
            heads=self.heads,
            rows=self.rows,
        ).unflatten(0, (len(masks), -1))
        return Answer(torch.zeros(len(masks), probe.here.shape[1], probe.feature_count))


def respond(model, texts, masks, method, **options):
    """Values [text, row, step] that the probe answers with."""
    asked["masks"] = masks
    options = {"target": "logprob", "keep": "none", **options}
    model.attribute([p for p, _ in texts], [c for _, c in texts], method=method, **options)
    return asked["values"]


def make_masks(hf, prompt, continuation, segments, *, source_kept):
    """Rows of features of a text: nothing removed, the whole prompt, and some at random."""
    tokens = len(prompt) + len(continuation) - (0 if hf.config.is_encoder_decoder else 1)
    features = tokens - sum(len(group) - 1 for group in segments)
    sources = len(prompt) - sum(len(group) - 1 for group in segments)
    masks = torch.rand(ROWS, features, generator=torch.Generator().manual_seed(3)) < 0.5
    masks[0] = False
    masks[1, :sources] = True
    if source_kept:
        masks[:, 0] = False
    first = {token: group[0] for group in segments for token in group}
    starts = [first.get(token, token) for token in range(tokens)]
    return masks, torch.tensor([sorted(set(starts)).index(start) for start in starts])


def compare(hf, expected, *, method, segments=(), source_kept=False, **options):
    """The probe's answers against a function (prompt, continuation, mask, feature of every token) -> logits."""
    made = [make_masks(hf, *text, segments, source_kept=source_kept) for text in TEXTS]
    masks = [one for one, _ in made]
    if segments:
        options["segments"] = [list(group) for group in segments]
    model = whence.load(hf)
    for (one, of), (prompt, continuation) in zip(made, TEXTS, strict=True):
        found = respond(model, [(prompt, continuation)], [one], replace(method, rows=1), **options)[0]
        for row, mask in zip(found, one, strict=True):
            with torch.no_grad():
                logits = expected(prompt, continuation, mask[of], of)
            right = logits.log_softmax(-1)[torch.arange(len(continuation)), torch.tensor(continuation)]
            # Some models compute their softmax, or biases by position, in float32 whatever their weights are.
            torch.testing.assert_close(row, right, rtol=1e-6, atol=1e-6)
        assert (found[1] - found[0]).abs().max() > 1e-4, "a row that changes nothing shows nothing"
    model = whence.load(hf.float())
    both = respond(model, TEXTS, masks, method, **options)
    for number, (_, continuation) in enumerate(TEXTS):
        alone = respond(model, TEXTS[number : number + 1], masks[number : number + 1], method, **options)[0]
        torch.testing.assert_close(both[number, :, : len(continuation)], alone, rtol=1e-5, atol=1e-5)


def whole(hf, prompt, continuation):
    """What the model reads when the whole continuation is known, and where the first step is predicted."""
    if hf.config.is_encoder_decoder:
        start = hf.config.decoder_start_token_id
        return {
            "input_ids": torch.tensor([prompt]),
            "decoder_input_ids": torch.tensor([[start, *continuation[:-1]]]),
        }, 0
    return {"input_ids": torch.tensor([[*prompt, *continuation[:-1]]])}, len(prompt) - 1
