"""Value norms: attention weights times the length of what they weigh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Extra, Need, Probe
from whence.core.errors import InputError, UnsupportedError
from whence.methods.internals.norms_fold import norms_fold
from whence.methods.internals.part_checks import rebuilding
from whence.methods.internals.stages import attention_stages, norm_follows


@dataclass(frozen=True)
class ValueNorms(AbstractMethod):
    """How long the vector is that attention brings from each token: a weight counts as much as what it weighs.

    ``A[t, j, l] = | sum over heads h of P[l, h, q(t), j] f[l, h](n_j) |`` with attention pattern P and values through
    the output projection ``f(n) = (n W_V + b_V) W_O``: at least 0, in units of the hidden states. One axis of
    layers, and one of heads with ``level="head"``. In encoder-decoder models source tokens are scored by cross
    attention, prefix tokens by self attention; the encoder's own is in ``extras["encoder_self"]``. A long vector may
    still be cancelled by another, and norms of a span are the mean of those of its steps.

    Source: Kobayashi et al. 2020, equations 3 and 5; 2021 for ``block``.

    Attributes:
        level: ``"layer"`` sums the vectors of all heads first; ``"head"`` keeps them apart.
        block: ``"attn"``; ``"res"`` adds the residual stream to the token's own vector; ``"resln"`` applies the norm
            after that sum as well, its statistics held, in models whose norms come after the sums.
        normalize: Divide each row by its sum.
    """

    level: Literal["layer", "head"] = "layer"
    block: Literal["attn", "res", "resln"] = "attn"
    normalize: bool = False

    name: ClassVar[str] = "value_norms"
    title: ClassVar[str] = "attention times the length of what it attends to"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INTERNALS, Need.ATTENTION})
    cites: ClassVar[tuple[str, ...]] = ("kobayashi2020", "kobayashi2021")
    cost: ClassVar[str] = "1F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    targets: ClassVar[frozenset[str] | None] = frozenset()
    defaults: ClassVar[Mapping[str, object]] = {}

    def __post_init__(self) -> None:
        if self.level not in ("layer", "head"):
            raise InputError(f"value_norms: level is 'layer' or 'head', not {self.level!r}.")
        if self.block not in ("attn", "res", "resln"):
            raise InputError(f"value_norms: block is 'attn', 'res' or 'resln', not {self.block!r}.")
        if self.level == "head" and self.block != "attn":
            raise InputError(
                f"value_norms: the residual stream belongs to no head, so block={self.block!r} goes with "
                "level='layer' only."
            )

    def __call__(self, probe: Probe) -> Answer:
        """Measure the vectors where they are."""
        anatomy = probe.anatomy
        if self.block == "resln" and not norm_follows(anatomy, "decoder"):
            raise UnsupportedError(
                "value_norms: block='resln' is about norms after the sums, and this model has them before its "
                "branches. Take block='res'."
            )
        options = {"level": self.level, "block": self.block, "normalize": self.normalize}
        found = probe.fold(attention_stages(anatomy), norms_fold, options)
        axes = ("layer", "head") if self.level == "head" else ("layer",)
        inside = {"encoder_self": Extra(found["encoder_self"], 0, axes)} if "encoder_self" in found else {}
        gaps = (rebuilding(probe, found["rebuilding"]),)
        return Answer(found["scores"], axes, per="token", gaps=gaps, extras=inside)
