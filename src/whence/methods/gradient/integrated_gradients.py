"""Integrated gradients: the whole difference between input and baseline, shared out among the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Derivatives, Gap, Need, Path, Probe
from whence.core.errors import InputError, UnsupportedError
from whence.methods.gradient.completeness import complete_enough, shares_gap
from whence.methods.gradient.quadrature import quadrature

_AUTO_STEPS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class IntegratedGradients(AbstractMethod):
    """Gradients averaged along the straight line from the baseline to the input, times their distance.

    ``A[t, i] = integral over a in [0, 1] of < d f_t / d e_i (b + a (x - b)) , e_i - b_i >``, all tokens
    moving together: signed, in units of the target, additive over steps. The scores of a step sum to
    ``f(x) - f(b)``; the check ``completeness`` says how nearly. The choice of baseline is part of the
    question: it is what the prediction is compared with.

    Source: Sundararajan, Taly and Yan 2017, equation 1.

    Attributes:
        n_steps: Points on the path, at least 1; or ``"auto"``: 16, 32, ... up to 512, until
            completeness holds.
        rule: Quadrature rule: ``"gauss_legendre"``, ``"trapezoid"``, ``"midpoint"``, ``"left"``, ``"right"``.
        multiply_by_inputs: False returns the averaged gradient, with an axis of units; no completeness.
        units: Keep the products of each unit, with an axis of units, instead of their sum.
    """

    n_steps: int | Literal["auto"] = 50
    rule: Literal["gauss_legendre", "trapezoid", "midpoint", "left", "right"] = "gauss_legendre"
    multiply_by_inputs: bool = True
    units: bool = False

    name: ClassVar[str] = "integrated_gradients"
    title: ClassVar[str] = "gradients along the way from a baseline; scores sum to the difference"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ("sundararajan2017",)
    cost: ClassVar[str] = "n (1F + min(T VJPs, K JVPs)) + 3F"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    layer: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"

    def __post_init__(self) -> None:
        quadrature(self.rule, 2 if self.n_steps == "auto" else self.n_steps)
        if self.units and not self.multiply_by_inputs:
            raise InputError("integrated_gradients: units=True is implied by multiply_by_inputs=False.")

    @property
    def directional(self) -> bool:
        """The products are summed over units, unless each is asked for."""
        return self.multiply_by_inputs and not self.units

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the derivatives, and state what they must add up to."""
        if probe.baseline is None:
            raise UnsupportedError("integrated_gradients needs a baseline to come from.")
        ladder = _AUTO_STEPS if self.n_steps == "auto" else (self.n_steps,)
        reduce = "gradient" if not self.multiply_by_inputs else "units" if self.units else "dot"
        found = probe.differentiate(
            reduce=reduce,
            paths=[Path(*quadrature(self.rule, n_steps)) for n_steps in ladder],
            accept=complete_enough if len(ladder) > 1 else None,
            reference=True,
        )
        return self._answer(found, ladder[found.record["path"]])

    def _answer(self, found: Derivatives, n_steps: int) -> Answer:
        wide = self.units or not self.multiply_by_inputs
        gaps = found.gaps
        if self.multiply_by_inputs:
            gap, scale = shares_gap(found, units=self.units)
            note = "sum of scores against f(x) - f(baseline)"
            gaps = (*gaps, Gap("completeness", gap, scale, "quadrature", note))
        return Answer(
            found.values,
            axes=("layer",) * bool(found.layers) + ("unit",) * wide,
            per="token" if wide else "feature",
            labels={"layer": found.layers},
            gaps=gaps,
            record={**found.record, "n_steps": n_steps},
        )
