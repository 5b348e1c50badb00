"""Occlusion: what the target loses when a feature is taken away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Removal, check_removal
from whence.core.errors import InputError, unknown_name
from whence.methods.perturbation.leave_out import leave_out

_SHARES = ("mean", "split")


@dataclass(frozen=True)
class Occlusion(AbstractMethod):
    """The target on the input, less the target without the feature.

    ``A[t, i] = f_t(x) - f_t(x without i)``: signed, in units of the target, additive over steps. One row of the
    model answers for all steps, as what is removed later than a step does not touch it. Scores do not sum to
    anything: where two features say the same, taking away either changes nothing, and both get 0.

    With ``target="jsd"`` or ``"kl_divergence"`` and no contrast, the score is how far the next-token distribution moves
    without the feature.

    With windows a feature's score is the mean over the windows that hold it, of what is lost without the window.

    Source: Zeiler and Fergus 2014, section 4.2; on words, Li et al. 2016.

    Attributes:
        removal: ``"replace"`` puts the baseline in the feature's place; ``"delete"`` takes its tokens out and
            numbers the positions of the others anew; ``"knockout"`` keeps all other tokens from attending to it.
        window: Neighbouring features that are removed together, at least 1.
        stride: Features from one window to the next, from 1 to `window`.
        window_share: ``"mean"``: a feature is given all that its window loses; ``"split"``: an equal share of it.
        knockout_layers: Blocks in which attention is knocked out, by number; None is all.
        knockout_heads: Heads in which it is, by number, the same in all of these blocks; None is all.
    """

    removal: Removal = "replace"
    window: int = 1
    stride: int = 1
    window_share: Literal["mean", "split"] = "mean"
    knockout_layers: Sequence[int] | None = None
    knockout_heads: Sequence[int] | None = None

    name: ClassVar[str] = "occlusion"
    title: ClassVar[str] = "what the target loses without each token"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ("zeiler2014", "li2016")
    cost: ClassVar[str] = "(K + 2)F"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    layer: ClassVar[bool] = True
    against_itself: ClassVar[frozenset[str]] = frozenset({"jsd", "kl_divergence"})
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"

    def __post_init__(self) -> None:
        check_removal(self.removal)
        if self.window_share not in _SHARES:
            raise unknown_name("window_share of occlusion:", str(self.window_share), _SHARES)
        if not 1 <= self.stride <= self.window:
            raise InputError(
                f"occlusion: stride={self.stride} and window={self.window}: a window has at least one feature, and "
                "the next begins 1 to window features later."
            )
        if self.removal != "knockout" and not (self.knockout_layers is None and self.knockout_heads is None):
            raise InputError("occlusion: knockout_layers and knockout_heads belong to removal='knockout'.")

    @property
    def replaces(self) -> bool:
        """Only a replacement is by something."""
        return self.removal == "replace"

    def __call__(self, probe: Probe) -> Answer:
        """Leave out one window after the other."""
        return leave_out(
            probe,
            removal=self.removal,
            window=self.window,
            stride=self.stride,
            share=self.window_share,
            layers=self.knockout_layers,
            heads=self.knockout_heads,
        )
