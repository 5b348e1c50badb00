"""SmoothGrad: gradients averaged over noisy inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Reduction
from whence.core.errors import unknown_name
from whence.methods.gradient.draws import check_draws, noisy_path

_BASES = ("saliency", "input_x_gradient")


@dataclass(frozen=True)
class SmoothGrad(AbstractMethod):
    """Saliency, or input x gradient, averaged over inputs with Gaussian noise.

    ``A[t, i] = || mean over s of d f_t / d e_i (e + noise_s) ||``: the signed gradients are averaged before their
    norm is taken, so what changes sign from draw to draw cancels. With ``base="input_x_gradient"`` it is the mean
    of ``< d f_t / d e_i (e + noise_s) , e_i + noise_s,i - b_i >``, signed and additive over steps. How much noise is
    right is not known beforehand: the gradients are those of a smoother function than the model.

    Source: Smilkov et al. 2017.

    Attributes:
        base: ``"saliency"`` or ``"input_x_gradient"``.
        n_samples: Noisy inputs, at least 1.
        stdev: Standard deviation of the noise, above 0 and up to 1, in units of the root mean square of each token's
            embedding (or value at the site). Fixed tokens get none.
        units: Keep each unit's mean gradient, or product, with an axis of units.
    """

    base: Literal["saliency", "input_x_gradient"] = "saliency"
    n_samples: int = 20
    stdev: float = 0.1
    units: bool = False

    name: ClassVar[str] = "smoothgrad"
    title: ClassVar[str] = "norm of the mean gradient over noisy inputs"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ("smilkov2017",)
    cost: ClassVar[str] = "n (1F + T VJPs) + 2F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    layer: ClassVar[bool] = True
    perturbs: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "zero"
    view: ClassVar[dict[str, str]] = {"layer": "mean", "unit": "l2"}

    def __post_init__(self) -> None:
        if self.base not in _BASES:
            raise unknown_name("base of smoothgrad:", str(self.base), _BASES)
        check_draws(self.n_samples, self.stdev, noiseless=False)

    @property
    def replaces(self) -> bool:
        """Saliency compares with nothing."""
        return self.base == "input_x_gradient"

    @property
    def directional(self) -> bool:
        """Products are summed over units, unless each is asked for; norms are not."""
        return self.base == "input_x_gradient" and not self.units

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the mean over noisy inputs, reduced where the model is."""
        multiplied = self.base == "input_x_gradient"
        kinds: dict[tuple[bool, bool], Reduction] = {
            (False, False): "l2",
            (False, True): "gradient",
            (True, False): "dot",
            (True, True): "units",
        }
        found = probe.differentiate(
            reduce=kinds[multiplied, self.units],
            paths=[noisy_path(self.name, self.n_samples, self.stdev)],
            reference=probe.baseline is not None,
        )
        return Answer(
            found.values,
            axes=("layer",) * bool(found.layers) + ("unit",) * self.units,
            per="feature" if self.directional else "token",
            merge="sum" if multiplied or self.units else "l2",
            labels={"layer": found.layers},
            gaps=found.gaps,
            record={**found.record, "n_samples": self.n_samples},
            error=found.error,
        )
