"""Attention weights: where the heads look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from whence.core.contract import AbstractMethod, Answer, Extra, Need, Probe, Stage
from whence.methods.internals.choices import check_choice, numbers, part_of
from whence.methods.internals.identities import mixture, row_sums
from whence.methods.internals.patterns import keep_rows

_STACKS = ("encoder", "decoder")


@dataclass(frozen=True)
class Attention(AbstractMethod):
    """The weight that each head of each layer gives to each token, at the position that predicts the step.

    ``A[t, i, l, h] = pattern[l, h, q(t), i]``, between 0 and 1; nothing is averaged, but for a span, which has the
    mean over its steps. In encoder-decoder models tokens of the source have the weights of cross attention, tokens
    of the prefix those of the decoder's self attention, each summing to 1; the weights inside the encoder are
    in ``extras["encoder_self"]``, as many as layers times heads times the square of the source. A weight tells
    where a head looks, not what that does to the output: a value that is looked at may be next to zero, and what
    a position holds in a deep layer is not its token alone.

    Source: Bahdanau, Cho and Bengio 2015; Vaswani et al. 2017.

    Attributes:
        layers: A number, a slice or a list of numbers of the blocks; ``{"encoder": ..., "decoder": ...}`` for
            each stack on its own. None is all.
        heads: The same of the query heads.
    """

    layers: Any = None
    heads: Any = None

    name: ClassVar[str] = "attention"
    title: ClassVar[str] = "weight that each attention head gives to each token"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INTERNALS, Need.ATTENTION})
    cites: ClassVar[tuple[str, ...]] = ("bahdanau2015", "vaswani2017")
    cost: ClassVar[str] = "1F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    targets: ClassVar[frozenset[str] | None] = frozenset()
    view: ClassVar[Mapping[str, str]] = {"layer": "mean", "head": "mean"}

    def __post_init__(self) -> None:
        check_choice("layers", self.layers, _STACKS)
        check_choice("heads", self.heads, _STACKS)

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the rows of the patterns, reduced where the model is."""
        import torch

        anatomy = probe.anatomy
        layers, heads, stages = {}, {}, []
        for stack, count in anatomy.layers.items():
            layers[stack] = numbers("layers", part_of(self.layers, stack), count, "layer", stack)
            heads[stack] = numbers("heads", part_of(self.heads, stack), anatomy.heads[stack], "head", stack)
            for layer in sorted(layers[stack]):
                for kind in ("attn", "cross_attn"):
                    if anatomy.has(stack, f"{kind}.pattern", layer):
                        sites = {part: anatomy.site(stack, f"{kind}.{part}", layer) for part in ("pattern", "v", "z")}
                        stages.append(Stage(f"{stack} {kind} {layer}", sites, {"stack": stack, "heads": heads[stack]}))
        found = probe.fold(stages, keep_rows, {})

        def stacked(stack: str, kind: str) -> Any:
            return torch.stack([found[f"{stack} {kind} {layer}"] for layer in layers[stack]], dim=3)

        scores = stacked("decoder", "attn")
        missing = (1 - scores.sum(2)).abs()
        extras = {}
        if anatomy.encoder_decoder:
            cross = stacked("decoder", "cross_attn")
            missing = missing.maximum((1 - cross.sum(2)).abs())
            scores = torch.cat([cross, scores], dim=2)
            extras["encoder_self"] = Extra(
                stacked("encoder", "attn"), 0, ("layer", "head"), _labels(layers["encoder"], heads["encoder"])
            )
        worst = missing.amax((2, 3))
        return Answer(
            scores,
            axes=("layer", "head"),
            per="token",
            labels=_labels(layers["decoder"], heads["decoder"]),
            gaps=(row_sums(worst, sinks=anatomy.sinks), mixture(found["gap"])),
            extras=extras,
        )


def _labels(layers: list[int], heads: list[int]) -> dict[str, tuple[str, ...]]:
    return {"layer": tuple(str(one) for one in layers), "head": tuple(str(one) for one in heads)}
