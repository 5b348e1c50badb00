"""GradientSHAP (expected gradients): integrated gradients of random points and references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Gap, Need, Path, Probe
from whence.core.errors import UnsupportedError
from whence.core.random import stream
from whence.methods.gradient.completeness import shares_gap
from whence.methods.gradient.draws import check_draws


@dataclass(frozen=True)
class GradientShap(AbstractMethod):
    """Gradients at random points of the ways from random references to the input, times their distance.

    ``A[t, i] = mean over s of < d f_t / d e_i (b_s + a_s (x - b_s) + noise_s) , e_i - b_s,i >``, with b_s
    drawn from the references and one a_s in [0, 1] for all tokens: signed, in units of the target, additive over
    steps. In expectation and without noise the scores of a step sum to ``f(x) - mean f(b)``; the check
    ``completeness`` allows for three standard errors. It is an estimate: compare its standard errors.

    Source: Lundberg and Lee 2017; Erion et al. 2021, expected gradients.

    Attributes:
        n_samples: Draws, at least 1.
        stdev: Standard deviation of Gaussian noise on the points, in units of each token's root mean square.
        stratify: Draw one a_s from each of ``n_samples`` equal parts of [0, 1], instead of all from all of it.
        units: Keep the products of each unit, with an axis of units, instead of their sum.
    """

    n_samples: int = 20
    stdev: float = 0.0
    stratify: bool = True
    units: bool = False

    name: ClassVar[str] = "gradient_shap"
    title: ClassVar[str] = "gradients at random points between the input and references"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ("lundberg2017", "erion2021")
    cost: ClassVar[str] = "n (1F + min(T VJPs, K JVPs)) + (2 + R) F for R references"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    layer: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"
    several_baselines: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_draws(self.n_samples, self.stdev, noiseless=True)

    @property
    def directional(self) -> bool:
        """The products are summed over units, unless each is asked for."""
        return not self.units

    def __call__(self, probe: Probe) -> Answer:
        """Draw points and references, ask for the derivatives, and state what they must add up to."""
        if not probe.baselines:
            raise UnsupportedError("gradient_shap needs a baseline to come from.")
        path = self._path(probe.seed, len(probe.baselines))
        found = probe.differentiate(reduce="units" if self.units else "dot", paths=[path], reference=True)
        gaps = found.gaps
        if not self.stdev:
            gap, scale = shares_gap(found, units=self.units, slack=None if found.drift is None else 3 * found.drift)
            note = "sum of scores against f(x) - mean f(baseline), beyond three standard errors"
            tolerance = None if found.drift is None else "quadrature"
            gaps = (*gaps, Gap("completeness", gap, scale, tolerance, note))
        return Answer(
            found.values,
            axes=("layer",) * bool(found.layers) + ("unit",) * self.units,
            per="token" if self.units else "feature",
            labels={"layer": found.layers},
            gaps=gaps,
            record={**found.record, "n_samples": self.n_samples},
            error=found.error,
        )

    def _path(self, seed: int, references: int) -> Path:
        """One point and one reference for every draw."""
        points, origins = [], []
        for number in range(self.n_samples):
            generator = stream(seed, self.name, number)
            share = float(generator.random())
            points.append((number + share) / self.n_samples if self.stratify else share)
            origins.append(int(generator.integers(references)))
        return Path(
            points=points,
            weights=[1 / self.n_samples] * self.n_samples,
            origins=origins,
            noise=self.stdev,
            item=self.name,
            sampled=True,
        )
