"""ALTI: which share of a position each token has, over all layers, measured on vectors instead of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Extra, Need, Probe
from whence.core.errors import InputError
from whence.methods.internals.alti_fold import alti_fold
from whence.methods.internals.part_checks import flat_rows, rebuilding, row_sums
from whence.methods.internals.stages import attention_stages


@dataclass(frozen=True)
class ALTI(AbstractMethod):
    """The share of each token in what the last block knows at the position of the step; shares sum to 1.

    In every layer the stream after attention is a sum of vectors ``T_i(j)``, one per token (the residual stream is
    part of the token's own), and ``c_ij`` is how much shorter the sum is without one of them:
    ``max(0, |y_i| - |y_i - T_i(j)|)``, divided by its sum over j. Layers compose as ``M_l = C_l M_(l-1)``. MLPs stay
    on their position and change nothing. In encoder-decoder models cross attention brings in the encoder's map
    (ALTI+), and shares sum to 1 over source and prefix. Shares say where a vector comes from, not what the output
    makes of it.

    Source: Ferrando, Gállego and Costa-jussà 2022; Ferrando et al. 2022 for encoder-decoder models.

    Attributes:
        norm: The norm that lengths are taken in: ``"l1"`` or ``"l2"``.
        rollout: Compose the layers. False gives the shares inside every layer, with an axis of layers.
        all_layers: Keep the map after every layer, with an axis of layers, instead of the last.
    """

    norm: Literal["l1", "l2"] = "l1"
    rollout: bool = True
    all_layers: bool = False

    name: ClassVar[str] = "alti"
    title: ClassVar[str] = "shares of the tokens in each position, composed over layers"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INTERNALS, Need.ATTENTION})
    cites: ClassVar[tuple[str, ...]] = ("ferrando2022", "ferrando2022towards")
    cost: ClassVar[str] = "1F + L N^2 H d"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    targets: ClassVar[frozenset[str] | None] = frozenset()
    defaults: ClassVar[Mapping[str, object]] = {}

    def __post_init__(self) -> None:
        if self.norm not in ("l1", "l2"):
            raise InputError(f"alti: norm is 'l1' or 'l2', not {self.norm!r}.")
        if self.all_layers and not self.rollout:
            raise InputError("alti: all_layers=True is implied by rollout=False.")

    def __call__(self, probe: Probe) -> Answer:
        """Compose the shares where the vectors are."""
        layers = self.all_layers or not self.rollout
        options = {"norm": self.norm, "rollout": self.rollout, "all_layers": layers, "widths": probe.widths}
        found = probe.fold(attention_stages(probe.anatomy), alti_fold, options)
        sums = found["scores"].sum(2)
        gaps = (
            rebuilding(probe, found["rebuilding"]),
            row_sums(sums),
            flat_rows(probe, found),
        )
        axes = ("layer",) if layers else ()
        inside = {"encoder_self": Extra(found["encoder_self"], 0, axes)} if "encoder_self" in found else {}
        return Answer(found["scores"], axes, per="token", gaps=gaps, extras=inside)
