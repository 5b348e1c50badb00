"""Attention rollout: attention weights multiplied over the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Extra, Need, Probe, Stage
from whence.core.errors import InputError, unknown_name
from whence.methods.internals.identities import row_sums
from whence.methods.internals.rolling import roll_pattern

_JOINS = ("mean", "max", "min")


@dataclass(frozen=True)
class AttentionRollout(AbstractMethod):
    """The share of each token in a position, if every layer mixed positions by its attention weights alone.

    ``R_l = ((1 - w) P_l + w I) R_{l-1}`` with ``R_0 = I``, ``P_l`` the pattern of layer ``l`` joined over its heads
    and ``w`` the weight of the residual stream; the scores of a step are the row of the position that predicts
    it. In encoder-decoder models the encoder's positions are made of the source's tokens in the same way (they are
    ``extras["encoder_self"]``), and a layer of the decoder takes the share ``c`` from them, by its cross
    attention, and ``1 - c`` from its own positions. The scores of a step sum to 1. The values that are mixed, the
    MLPs and the norms play no part.

    Source: Abnar and Zuidema 2020, equation 1; the composition with an encoder follows Ferrando et al. 2022.

    Attributes:
        residual: The weight of the residual stream, from 0 to 1.
        head_reduce: How heads join: ``"mean"``, or ``"max"`` or ``"min"`` with rows divided by their sums.
        cross: The share that a layer of the decoder takes from the source, from 0 to 1.
        all_layers: Return also the product up to each layer, with an axis of layers.
    """

    residual: float = 0.5
    head_reduce: Literal["mean", "max", "min"] = "mean"
    cross: float = 0.5
    all_layers: bool = False

    name: ClassVar[str] = "attention_rollout"
    title: ClassVar[str] = "attention weights multiplied over the layers; scores sum to 1"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INTERNALS, Need.ATTENTION})
    cites: ClassVar[tuple[str, ...]] = ("abnar2020", "ferrando2022towards")
    cost: ClassVar[str] = "1F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    targets: ClassVar[frozenset[str] | None] = frozenset()
    view: ClassVar[Mapping[str, str]] = {"layer": "mean"}

    def __post_init__(self) -> None:
        for name, weight in (("residual", self.residual), ("cross", self.cross)):
            if not 0 <= weight <= 1:
                raise InputError(f"attention_rollout: {name} is a share from 0 to 1, not {weight!r}.")
        if self.head_reduce not in _JOINS:
            raise unknown_name("head_reduce of attention_rollout:", str(self.head_reduce), _JOINS)

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the product, made where the model is."""
        import torch

        anatomy = probe.anatomy
        stages, kept = [], {}
        for stream, (stack, count) in enumerate(anatomy.layers.items()):
            kept[stack] = [f"{stack} {layer}" for layer in range(0 if self.all_layers else count - 1, count)]
            for layer in range(count):
                sites = {"own": anatomy.site(stack, "attn.pattern", layer)}
                if anatomy.has(stack, "cross_attn.pattern", layer):
                    sites["cross"] = anatomy.site(stack, "cross_attn.pattern", layer)
                name = f"{stack} {layer}"
                keep = name if name in kept[stack] else None
                stages.append(Stage(name, sites, {"stream": stream, "encoder": stack == "encoder", "keep": keep}))
        data = {"residual": self.residual, "cross": self.cross, "heads": self.head_reduce}
        found = probe.fold(stages, roll_pattern, data)

        def stacked(stack: str) -> Any:
            products = torch.stack([found[name] for name in kept[stack]], dim=3)
            return products if self.all_layers else products.squeeze(3)

        axes = ("layer",) if self.all_layers else ()
        labels = {
            stack: {"layer": tuple(str(layer) for layer in range(count))} if axes else {}
            for stack, count in anatomy.layers.items()
        }
        scores = stacked("decoder")
        extras = {}
        if anatomy.encoder_decoder:
            extras["encoder_self"] = Extra(stacked("encoder"), 0, axes, labels["encoder"])
        missing = (1 - scores.sum(2)).abs().flatten(2).amax(2) if axes else (1 - scores.sum(2)).abs()
        sinks = anatomy.sinks and self.head_reduce == "mean"
        return Answer(
            scores,
            axes=axes,
            per="token",
            labels=labels["decoder"],
            gaps=(row_sums(missing, sinks=sinks),),
            extras=extras,
        )
