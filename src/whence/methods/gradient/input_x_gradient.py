"""Input x gradient: the first-order share of each token in the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Gap, Need, Probe


@dataclass(frozen=True)
class InputXGradient(AbstractMethod):
    """Gradient of the target times the embedding's distance from the baseline.

    ``A[t, i] = < d f_t / d e_i , e_i - b_i >``: signed, in units of the target, additive over steps. By
    default b = 0. With a baseline it is attribution patching: a first-order estimate of what replacing the
    token would take away. A first-order number: it is exact where the model is linear between the two.

    Source: Shrikumar et al. 2016; with a baseline, Nanda 2023.

    Attributes:
        units: Keep the products of each unit, with an axis of units, instead of their sum.
    """

    units: bool = False

    name: ClassVar[str] = "input_x_gradient"
    title: ClassVar[str] = "gradient times input, the first-order share of each token"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ("shrikumar2016", "nanda2023")
    cost: ClassVar[str] = "2F + min(T VJPs, K JVPs)"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    layer: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "zero"

    @property
    def directional(self) -> bool:
        """The products are summed over units, unless each is asked for."""
        return not self.units

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the derivatives, and state what they must add up to."""
        compared = probe.baseline is not None
        found = probe.differentiate(reduce="units" if self.units else "dot", reference=compared)
        gaps = found.gaps
        if found.there is not None:
            total = found.values.sum(-1) if self.units else found.values
            total = total.sum(2)
            here = found.here[..., None] if found.layers else found.here
            gap = (total - (here - found.there)).abs()
            worst = gap.amax(-1) if found.layers else gap
            scale = found.here.abs().clamp_min(1e-12)
            note = "sum of scores against f(x) - f(baseline); exact only for a linear model"
            gaps = (*gaps, Gap("first-order", worst, scale, None, note))
        return Answer(
            found.values,
            axes=("layer",) * bool(found.layers) + ("unit",) * self.units,
            per="token" if self.units else "feature",
            labels={"layer": found.layers},
            gaps=gaps,
            record=found.record,
        )
