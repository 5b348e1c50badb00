"""Information flow routes: edges of the computation by how much of the sum they carry, from the step to the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Extra, Need, Probe
from whence.core.errors import InputError
from whence.methods.internals.flow_fold import flow_fold
from whence.methods.internals.part_checks import flat_rows, rebuilding, row_sums
from whence.methods.internals.stages import attention_stages


@dataclass(frozen=True)
class InformationFlow(AbstractMethod):
    """The share of each token in what flows to the position of the step, by the edges of every head.

    Into the stream after attention, ``y = x + sum of parts``, goes one edge per head and token and one for the
    residual stream; its weight is how much shorter y is without it, ``max(0, |y| - |y - part|)`` in the L1 norm,
    divided by the sum over all edges. At least 0, without a unit. ``compose="rollout"`` multiplies the edges of the
    layers, and shares of all tokens sum to 1; ``"direct"`` adds up the edges into the step's own position, those of
    the residual stream left out. MLPs stay on their position. In encoder-decoder models edges of self and cross
    attention share one sum, and the source is mapped to tokens through the encoder. Vectors that cancel each other
    get edges all the same.

    Source: Ferrando and Voita 2024.

    Attributes:
        compose: ``"rollout"`` over all layers, or ``"direct"``.
        threshold: Edges with a smaller share are dropped, and the others share the whole among them.
    """

    compose: Literal["rollout", "direct"] = "rollout"
    threshold: float = 0.0

    name: ClassVar[str] = "information_flow"
    title: ClassVar[str] = "routes that information takes, weighed by edges of every head"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INTERNALS, Need.ATTENTION})
    cites: ClassVar[tuple[str, ...]] = ("ferrando2024",)
    cost: ClassVar[str] = "1F + L N^2 H d"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    targets: ClassVar[frozenset[str] | None] = frozenset()
    defaults: ClassVar[Mapping[str, object]] = {}

    def __post_init__(self) -> None:
        if self.compose not in ("rollout", "direct"):
            raise InputError(f"information_flow: compose is 'rollout' or 'direct', not {self.compose!r}.")
        if not 0 <= self.threshold < 1:
            raise InputError(f"information_flow: threshold is a share, from 0 to below 1, not {self.threshold!r}.")

    def __call__(self, probe: Probe) -> Answer:
        """Weigh and compose the edges where the vectors are."""
        options = {"compose": self.compose, "threshold": float(self.threshold), "widths": probe.widths}
        found = probe.fold(attention_stages(probe.anatomy), flow_fold, options)
        gaps = [rebuilding(probe, found["rebuilding"]), flat_rows(probe, found)]
        if self.compose == "rollout":
            gaps.append(row_sums(found["scores"].sum(-1)))
        inside = {"encoder_self": Extra(found["encoder_self"], 0)} if "encoder_self" in found else {}
        return Answer(found["scores"], per="token", gaps=tuple(gaps), extras=inside)
