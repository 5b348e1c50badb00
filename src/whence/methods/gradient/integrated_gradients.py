"""Integrated gradients: the whole difference between input and baseline, shared out among the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Derivatives, Gap, Need, Probe
from whence.core.errors import InputError, UnsupportedError
from whence.methods.gradient.quadrature import quadrature

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_AUTO_STEPS = (16, 32, 64, 128, 256, 512)
_AUTO_TOLERANCE = {True: 2e-2, False: 5e-2}


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
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"

    def __post_init__(self) -> None:
        quadrature(self.rule, 2 if self.n_steps == "auto" else self.n_steps)
        if self.units and not self.multiply_by_inputs:
            raise InputError("integrated_gradients: units=True is implied by multiply_by_inputs=False.")

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the derivatives, and state what they must add up to."""
        if probe.baseline is None:
            raise UnsupportedError("integrated_gradients needs a baseline to come from.")
        if self.n_steps != "auto":
            return self._answer(self._path(probe, self.n_steps), self.n_steps)
        for n_steps in _AUTO_STEPS[:-1]:
            found = self._path(probe, n_steps)
            gap, scale = self._completeness(found)
            if bool((gap <= _AUTO_TOLERANCE[found.values.element_size() >= 4] * scale).all()):
                return self._answer(found, n_steps)
        return self._answer(self._path(probe, _AUTO_STEPS[-1]), _AUTO_STEPS[-1])

    def _path(self, probe: Probe, n_steps: int) -> Derivatives:
        points, weights = quadrature(self.rule, n_steps)
        reduce = "gradient" if not self.multiply_by_inputs else "units" if self.units else "dot"
        return probe.differentiate(reduce=reduce, points=points, weights=weights, reference=True)

    def _answer(self, found: Derivatives, n_steps: int) -> Answer:
        wide = self.units or not self.multiply_by_inputs
        gaps = found.gaps
        if self.multiply_by_inputs:
            gap, scale = self._completeness(found)
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

    def _completeness(self, found: Derivatives) -> tuple[Float[Tensor, "batch column"], Float[Tensor, "batch column"]]:
        """Worst gap over layers, and what it is compared with."""
        assert found.there is not None
        shares = found.values.sum(-1) if self.units else found.values
        here = found.here[..., None] if found.layers else found.here
        gap = (shares.sum(2) - (here - found.there)).abs()
        scale = here.abs().maximum(found.there.abs()).maximum(shares.abs().sum(2)).clamp_min(1e-12)
        if found.layers:
            worst = (gap / scale).argmax(-1, keepdim=True)
            return gap.gather(-1, worst).squeeze(-1), scale.gather(-1, worst).squeeze(-1)
        return gap, scale
