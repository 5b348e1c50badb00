"""SquareGrad: squared gradients averaged over noisy inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from whence.core.contract import AbstractMethod, Answer, Need, Probe
from whence.methods.gradient.draws import check_draws, noisy_path


@dataclass(frozen=True)
class SquareGrad(AbstractMethod):
    """Mean, over inputs with Gaussian noise, of the squared norm of the gradient at each token.

    ``A[t, i] = mean over s of || d f_t / d e_i (e + noise_s) ||^2``: at least 0, in squared units of the target per
    squared unit of the embedding. Squares cannot cancel, so it also shows what changes sign from draw to draw.

    Source: Hooker et al. 2019, where it is compared with SmoothGrad and VarGrad.

    Attributes:
        n_samples: Noisy inputs, at least 1.
        stdev: Standard deviation of the noise, above 0 and up to 1, in units of the root mean square of each token's
            embedding (or value at the site). Fixed tokens get none.
    """

    n_samples: int = 20
    stdev: float = 0.1

    name: ClassVar[str] = "squaregrad"
    title: ClassVar[str] = "mean squared gradient over noisy inputs"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ("hooker2019",)
    cost: ClassVar[str] = "n (1F + T VJPs) + 2F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    layer: ClassVar[bool] = True
    perturbs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_draws(self.n_samples, self.stdev, noiseless=False)

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the gradients over noisy inputs, reduced where the model is."""
        path = noisy_path(self.name, self.n_samples, self.stdev)
        found = probe.differentiate(reduce="squares", paths=[path])
        return Answer(
            found.values,
            axes=("layer",) * bool(found.layers),
            per="token",
            labels={"layer": found.layers},
            gaps=found.gaps,
            record={**found.record, "n_samples": self.n_samples},
            error=found.error,
        )
