"""The calls of `benchmarks.limit`, each with the same by hand: the passes of the scores, and those of the checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

import whence
from benchmarks import by_hand, internals_by_hand
from benchmarks.bench_models import Text
from whence.methods.perturbation.masks import random_masks, with_ends
from whence.probe.derivatives import ADJOINT_PRODUCTS

COMPARED: Mapping[str, Any] = {"baseline": "unk", "keep": "none"}
LIME_WIDTH = 0.25


@dataclass(frozen=True)
class Setting:
    """A model with a text, to whence and by hand.

    Attributes:
        model: The model, to whence.
        text: The text.
        plain: The same weights in a transformers model of their own.
        eager: The same again, with eager attention; None for an encoder-decoder.
    """

    model: whence.Model
    text: Text
    plain: Any
    eager: Any

    @property
    def ids(self) -> torch.Tensor:
        """What a decoder reads."""
        return torch.tensor([*self.text.source, *self.text.generated[:-1]], device=self.plain.device)

    @property
    def low(self) -> torch.Tensor:
        """The embedding of the unknown word."""
        return self.plain.get_input_embeddings().weight[self.model.tokenizer.unk_token_id].detach()

    def bare(self, score: by_hand.Score = by_hand.probability) -> by_hand.Bare:
        """The text, by hand."""
        return by_hand.Bare(self.plain, self.ids, torch.tensor(self.text.generated, device=self.plain.device), score)

    def ask(self, options: Mapping[str, Any]) -> whence.Attribution:
        """What whence says."""
        out = self.model.attribute(list(self.text.source), list(self.text.generated), progress=False, **options)
        assert isinstance(out, whence.Attribution)
        return out

    @cached_property
    def products(self) -> int:
        """Products that whence puts in a batch, where there are as many columns."""
        return self.model.estimate(
            list(self.text.source), list(self.text.generated), method="saliency"
        ).products_per_pass

    def rows(self, options: Mapping[str, Any]) -> int:
        """Rows that whence puts in a pass."""
        return self.model.estimate(list(self.text.source), list(self.text.generated), **options).rows_per_pass


Hand = Callable[[Setting, int], np.ndarray]
Check = Callable[[Setting], object]


@dataclass(frozen=True)
class Row:
    """A call of whence with its counterparts.

    Attributes:
        options: Arguments of `whence.Model.attribute`.
        least: The scores by hand, from a setting and the rows per pass.
        checks: The passes that whence's checks take.
        families: The models that it is for.
    """

    options: Mapping[str, Any]
    least: Hand
    checks: Check
    families: tuple[str, ...] = ("gpt2", "llama")


def clean_pass(setting: Setting) -> object:
    """The target on the clean input."""
    return by_hand.clean(setting.bare())


def ends(setting: Setting) -> object:
    """The input written back, and at its reference: two rows of one pass."""
    bare, low = setting.bare(), setting.low
    return by_hand.removed(bare, low, torch.tensor([[False], [True]]).expand(2, len(bare.ids)).to(low.device), 2)


def other_mode(setting: Setting, products: int) -> object:
    """A derivative in forward mode, where so many products have whence compare both modes."""
    if products < ADJOINT_PRODUCTS:
        return None
    bare = setting.bare()
    here = by_hand.embeddings(bare)
    return by_hand.tangents(bare, here, here)


def reverse_mode(setting: Setting) -> object:
    """One product in reverse mode."""
    bare = setting.bare()
    return by_hand.input_x_gradient(bare, 1, by_hand.whole_span(bare))


def steps_gradient(name: str, setting: Setting, rows: int) -> np.ndarray:
    """Saliency or input x gradient of every step."""
    del rows
    bare = setting.bare()
    return getattr(by_hand, name)(bare, setting.products, by_hand.single_steps(bare))


def span_gradient(name: str, setting: Setting, rows: int) -> np.ndarray:
    """The same of the log-probability of the whole continuation."""
    del rows
    bare = setting.bare(by_hand.logprob)
    return getattr(by_hand, name)(bare, setting.products, by_hand.whole_span(bare))


def path(setting: Setting, rows: int, *, n_steps: int, span: bool = False) -> np.ndarray:
    """Integrated gradients."""
    bare = setting.bare(by_hand.logprob if span else by_hand.probability)
    columns = by_hand.whole_span(bare) if span else by_hand.single_steps(bare)
    points, weights = by_hand.quadrature(n_steps)
    return by_hand.path_gradients(
        bare, setting.low, points, weights, rows=rows, products=setting.products, columns=columns
    )


def segment_masks(setting: Setting) -> torch.Tensor:
    """Four equal parts of the prompt, as masks of the token axis."""
    masks = torch.zeros(4, len(setting.ids), dtype=torch.bool, device=setting.plain.device)
    for feature, members in enumerate(quarters(len(setting.text.source))):
        masks[feature, members] = True
    return masks


def quarters(count: int) -> list[list[int]]:
    """The places of a prompt in four parts."""
    return [part.tolist() for part in np.array_split(np.arange(count), 4)]


def along(setting: Setting, rows: int, *, n_steps: int) -> np.ndarray:
    """Integrated gradients of four segments, in forward mode."""
    points, weights = by_hand.quadrature(n_steps)
    features = segment_masks(setting)
    return by_hand.path_tangents(setting.bare(), setting.low, points, weights, rows=rows, features=features)


def lime(setting: Setting, rows: int, *, n_samples: int) -> np.ndarray:
    """LIME, on the rows that whence draws."""
    able = np.ones(len(setting.ids), dtype=bool)
    kept = with_ends(random_masks(0, "lime", able, n_samples - 2), able)
    return by_hand.lime(setting.bare(), setting.low, kept, rows, width=LIME_WIDTH)


def zeroed(setting: Setting, rows: int) -> np.ndarray:
    """Value zeroing of an encoder-decoder."""
    device = setting.plain.device
    target = torch.tensor([setting.model.decoder_start, *setting.text.generated[:-1]], device=device)
    source = torch.tensor(setting.text.source, device=device)
    return internals_by_hand.value_zeroing(setting.plain, source, target, rows)


def make_rows(source: int, points: int) -> dict[str, Row]:
    """The calls, for a prompt of so many tokens and so many points on a path."""
    span = {"steps": "whole", "target": "logprob"}
    four = {"segments": quarters(source), "sides": ["source"]}
    method = {"method": "integrated_gradients", "n_steps": points, **COMPARED}

    def occluded(setting: Setting, rows: int) -> np.ndarray:
        return by_hand.occlusion(setting.bare(), setting.low, rows)

    def several(*parts: Check) -> Check:
        return lambda setting: [part(setting) for part in parts]

    def both_modes(setting: Setting) -> object:
        return other_mode(setting, len(setting.text.generated))

    def both_modes_on_path(setting: Setting) -> object:
        return other_mode(setting, len(setting.text.generated) * points)

    return {
        "saliency": Row(
            {"method": "saliency"}, lambda s, r: steps_gradient("saliency", s, r), several(clean_pass, both_modes)
        ),
        "input_x_gradient": Row(
            {"method": "input_x_gradient"},
            lambda s, r: steps_gradient("input_x_gradient", s, r),
            several(clean_pass, both_modes),
        ),
        "integrated_gradients": Row(
            method, lambda s, r: path(s, r, n_steps=points), several(clean_pass, ends, both_modes_on_path)
        ),
        "saliency, one span": Row(
            {"method": "saliency", **span}, lambda s, r: span_gradient("saliency", s, r), clean_pass
        ),
        "integrated_gradients, one span": Row(
            {**method, **span},
            lambda s, r: path(s, r, n_steps=points, span=True),
            several(clean_pass, ends, lambda s: other_mode(s, points)),
        ),
        "integrated_gradients, 4 segments": Row(
            {**method, **four, "mode": "forward"},
            lambda s, r: along(s, r, n_steps=points),
            several(clean_pass, ends, reverse_mode),
        ),
        "occlusion": Row({"method": "occlusion", **COMPARED}, occluded, clean_pass),
        "lime": Row(
            {"method": "lime", "n_samples": points, **COMPARED}, lambda s, r: lime(s, r, n_samples=points), clean_pass
        ),
        "sequential_integrated_gradients": Row(
            {"method": "sequential_integrated_gradients", **COMPARED}, occluded, lambda _: None
        ),
        "attention": Row(
            {"method": "attention"},
            lambda s, _: internals_by_hand.attention(s.eager, s.ids, len(s.text.generated)),
            lambda _: None,
        ),
        "value_zeroing": Row({"method": "value_zeroing"}, zeroed, lambda _: None, ("t5",)),
    }
