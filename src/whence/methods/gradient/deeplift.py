"""DeepLIFT: the whole difference between input and baseline, shared out operation by operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Gap, Need, Path, Probe
from whence.core.errors import InputError, UnsupportedError
from whence.methods.gradient.completeness import shares_gap


@dataclass(frozen=True)
class DeepLift(AbstractMethod):
    """Multipliers of every operation between a baseline and the input, chained, times the input's distance.

    ``A[t, i] = < m_{t,i} , e_i - b_i >`` with m the product of multipliers ``M (x - x') = y - y'``, x' and y' being the
    values on the baseline: signed, in units of the target, additive over steps. The scores of a step sum to
    ``f(x) - f(b)`` up to rounding, whatever lies between the two; the check ``completeness`` says so. The paper's
    rescale rule serves elementwise functions; products, softmax and norms have rules of their own
    (`whence.probe.rules`). A mixture of experts is not covered where the two inputs choose other experts: the gap
    tells. Of several baselines the scores are the mean of those of each (DeepSHAP), and sum to ``f(x) - mean f(b)``.

    Source: Shrikumar, Greenside and Kundaje 2017, sections 3.2 and 3.5.1; Lundberg and Lee 2017, section 4.2, for
    several baselines.

    Attributes:
        multiply_by_inputs: False returns the multipliers, with an axis of units; no completeness.
        units: Keep the products of each unit, with an axis of units, instead of their sum.
    """

    multiply_by_inputs: bool = True
    units: bool = False

    name: ClassVar[str] = "deeplift"
    title: ClassVar[str] = "differences from a baseline, shared out operation by operation; scores sum to the whole"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS, Need.INTERNALS})
    cites: ClassVar[tuple[str, ...]] = ("shrikumar2017", "lundberg2017")
    cost: ClassVar[str] = "R (2F + min(T VJPs, K JVPs)) + 1F for R references"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    layer: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"
    several_baselines: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.units and not self.multiply_by_inputs:
            raise InputError("deeplift: units=True is implied by multiply_by_inputs=False.")

    @property
    def directional(self) -> bool:
        """The products are summed over units, unless each is asked for."""
        return self.multiply_by_inputs and not self.units

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the multipliers, and state what they must add up to."""
        count = len(probe.baselines)
        if not count:
            raise UnsupportedError("deeplift needs a baseline to compare with.")
        wide = self.units or not self.multiply_by_inputs
        reduce = "gradient" if not self.multiply_by_inputs else "units" if self.units else "dot"
        path = Path(points=[1.0] * count, weights=[1 / count] * count, origins=range(count))
        found = probe.differentiate(reduce=reduce, paths=[path], reference=True, rules="deeplift")
        gaps = found.gaps
        if self.multiply_by_inputs and found.there is not None:
            gap, scale = shares_gap(found, units=self.units)
            gaps = (*gaps, Gap("completeness", gap, scale, "single", "sum of scores against f(x) - f(baseline)"))
        return Answer(
            found.values,
            axes=("layer",) * bool(found.layers) + ("unit",) * wide,
            per="token" if wide else "feature",
            labels={"layer": found.layers},
            gaps=gaps,
            record=found.record,
        )
