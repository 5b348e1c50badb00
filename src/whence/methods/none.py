"""No attribution: only the step scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from whence.core.contract import AbstractMethod, Answer, Need, Probe


@dataclass(frozen=True)
class NoAttribution(AbstractMethod):
    """Step scores alone, at the cost of the pass that measures them.

    No score is defined; every cell is NaN. The number per step is in ``step_scores``, the probability unless
    others are asked for.
    """

    name: ClassVar[str] = "none"
    title: ClassVar[str] = "no scores; only what step_scores= asks for"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = "1F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    targets: ClassVar[frozenset[str] | None] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {"step_scores": ("probability",)}

    def __call__(self, probe: Probe) -> Answer:
        """Answer that nothing is defined."""
        import torch

        seen = probe.defined
        return Answer(torch.zeros(seen.shape), defined=torch.zeros_like(seen))
