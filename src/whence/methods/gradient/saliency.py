"""Saliency: how steeply the target changes with each input embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Reduction
from whence.core.errors import InputError, unknown_name

_NORMS = ("l2", "l1", "linf")


@dataclass(frozen=True)
class Saliency(AbstractMethod):
    """Norm of the gradient of the target with respect to each token's embedding.

    ``A[t, i] = || d f_t / d e_i ||``: at least 0, in units of the target per unit of the embedding. It
    depends on the scale of the embeddings, so it compares tokens of one model, not models.

    Source: Simonyan, Vedaldi and Zisserman 2014, section 3.

    Attributes:
        norm: ``"l2"``, ``"l1"`` or ``"linf"`` over the embedding's units.
        units: Return the gradient itself, signed, with an axis of units.
        abs: With ``units``, its absolute value.
    """

    norm: Literal["l2", "l1", "linf"] = "l2"
    units: bool = False
    abs: bool = False

    name: ClassVar[str] = "saliency"
    title: ClassVar[str] = "norm of the gradient at each token"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ("simonyan2014",)
    cost: ClassVar[str] = "2F + T VJPs"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    layer: ClassVar[bool] = True
    view: ClassVar[dict[str, str]] = {"layer": "mean", "unit": "l2"}

    def __post_init__(self) -> None:
        if self.norm not in _NORMS:
            raise unknown_name("norm of saliency:", str(self.norm), _NORMS)
        if self.abs and not self.units:
            raise InputError("saliency: abs=True belongs to units=True; a norm is never negative.")

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the gradients, reduced where the model is."""
        reduce = "gradient" if self.units else self.norm
        found = probe.differentiate(reduce=cast("Reduction", reduce))
        scores = found.values.abs() if self.abs else found.values
        axes = ("layer",) * bool(found.layers) + ("unit",) * self.units
        return Answer(
            scores,
            axes=axes,
            per="token",
            merge="sum" if self.units else self.norm,
            labels={"layer": found.layers},
            gaps=found.gaps,
            record=found.record,
        )
