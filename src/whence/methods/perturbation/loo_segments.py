"""Leave one segment out: which sentence, document or message an answer hangs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Removal, check_removal
from whence.methods.perturbation.leave_out import leave_out
from whence.methods.perturbation.refine import read_hierarchy, refine


@dataclass(frozen=True)
class LooSegments(AbstractMethod):
    """The log-probability of the whole answer, less that without the segment.

    ``A[W, i] = f_W(x) - f_W(x without segment i)``, with f_W the sum of the target over the steps of W: signed,
    in units of the target, additive over steps. It is occlusion with the defaults of context attribution:
    sentences of the source are deleted, and the whole continuation is one number. A fact that stands in two
    sentences is not lost without either, and both get little.

    With ``target="jsd"`` and no contrast the score is how far the next-token distributions move without the segment,
    ``sum over steps of JSD(P(full), P(without i))``, in [0, ln 2] nats per step, whichever token stands there.

    Source: Cohen-Wang et al. 2024, section 4 (as a baseline there); with ``"jsd"``: Li et al. 2025 (ARC-JSD).

    Attributes:
        removal: ``"delete"`` takes the segment's tokens out and numbers the positions of the others anew;
            ``"replace"`` puts the baseline in their place; ``"knockout"`` keeps all other tokens from attending
            to them.
        hierarchical: ``{"levels": ["message", "paragraph"], "keep": 3}`` asks about coarse segments first. A level is
            what ``segments=`` takes; a feature is in the segment that it begins in. Of each level only the ``keep``
            segments with the highest scores are refined, by the next level and at the end by the features. Every
            column chooses for itself, so a span may skip others than its steps. What is skipped is NaN, which is
            not 0: ``info["engine"]`` has these features (``skipped``), and the scores of all coarse segments that
            were asked about (``levels``). Every level is a request of its own. None asks about all features.
    """

    removal: Removal = "delete"
    hierarchical: Mapping[str, Any] | None = None

    name: ClassVar[str] = "loo_segments"
    title: ClassVar[str] = "what the whole answer loses without each sentence"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ("cohenwang2024", "li2025")
    cost: ClassVar[str] = "(K + 2)F"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    layer: ClassVar[bool] = True
    against_itself: ClassVar[frozenset[str]] = frozenset({"jsd", "kl_divergence"})
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"
    defaults: ClassVar[Mapping[str, Any]] = {
        "target": "logprob",
        "segments": "sentence",
        "steps": "whole",
        "sides": ("source",),
    }

    def __post_init__(self) -> None:
        check_removal(self.removal)
        if self.hierarchical is not None:
            read_hierarchy("hierarchical", self.hierarchical)

    @property
    def replaces(self) -> bool:
        """Only a replacement is by something."""
        return self.removal == "replace"

    def __call__(self, probe: Probe) -> Answer:
        """Leave out one segment after the other."""
        if self.hierarchical is None:
            return leave_out(probe, removal=self.removal)
        levels, keep = read_hierarchy("hierarchical", self.hierarchical)
        return refine(probe, removal=self.removal, levels=levels, keep=keep)
