"""Sequential integrated gradients: each token on its own way, the others as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Derivatives, Gap, Need, Path, Probe
from whence.core.errors import InputError, UnsupportedError
from whence.methods.gradient.quadrature import quadrature

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_DEFAULT_STEPS = 50


@dataclass(frozen=True)
class SequentialIntegratedGradients(AbstractMethod):
    """What the target loses when one token alone goes to the baseline, shared out by its gradients on the way.

    ``A[t, i] = integral over a in [0, 1] of < d f_t / d e_i (x with e_i at b_i + a (e_i - b_i)) , e_i - b_i >``:
    signed, in units of the target, additive over steps. By the fundamental theorem of calculus that is
    ``f(x) - f(x with token i at the baseline)``, so by default no gradient is taken: the two targets are
    subtracted, and the scores equal those of occlusion. They do not sum to anything over tokens.

    Source: Enguehard 2023; without the paper's norm over the tokens of a text.

    Attributes:
        exact: Subtract the two targets, instead of integrating.
        n_steps: Points on each way, at least 1, with ``exact=False``; None is 50.
        rule: Quadrature rule, with ``exact=False``: ``"gauss_legendre"``, ``"trapezoid"``, ``"midpoint"``,
            ``"left"``, ``"right"``; None is the first.
        units: With ``exact=False``: keep the products of each unit, with an axis of units, instead of their sum.
            Each token then has a product for each step of the text at each point.
    """

    exact: bool = True
    n_steps: int | None = None
    rule: Literal["gauss_legendre", "trapezoid", "midpoint", "left", "right"] | None = None
    units: bool = False

    name: ClassVar[str] = "sequential_integrated_gradients"
    title: ClassVar[str] = "gradients on the way of one token at a time; equals what is lost without it"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ("enguehard2023",)
    cost: ClassVar[str] = "(K + 1) F; with exact=False n K (1F + 1 JVP) + (K + 3) F"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    layer: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"

    def __post_init__(self) -> None:
        if self.exact and (self.n_steps is not None or self.rule is not None or self.units):
            raise InputError(f"{self.name}: n_steps, rule and units belong to exact=False; nothing is integrated.")
        self._quadrature()

    @property
    def required(self) -> frozenset[Need]:
        """Gradients are needed only where there is something to integrate."""
        return self.needs - {Need.GRADIENTS} if self.exact else self.needs

    @property
    def directional(self) -> bool:
        """The products are summed over units, unless each is asked for."""
        return not self.units

    def __call__(self, probe: Probe) -> Answer:
        """Subtract targets; with ``exact=False`` integrate, and compare with their differences."""
        if probe.baseline is None:
            raise UnsupportedError(f"{self.name} needs a baseline to come from.")
        if self.exact:
            axes = ("layer",) * bool(probe.layer_labels)
            labels = {"layer": probe.layer_labels}
            return Answer(losses(probe), axes=axes, labels=labels, record={"mode": "exact"})
        found = self._integrate(probe)
        gap, scale = self._gap(probe, found)
        note = "each score against what the target loses with that token at the baseline"
        return Answer(
            found.values,
            axes=("layer",) * bool(found.layers) + ("unit",) * self.units,
            per="token" if self.units else "feature",
            labels={"layer": found.layers},
            gaps=(*found.gaps, Gap("occlusion", gap, scale, "quadrature", note)),
            record=found.record,
        )

    def _quadrature(self) -> tuple[list[float], list[float]]:
        steps = _DEFAULT_STEPS if self.n_steps is None else self.n_steps
        return quadrature("gauss_legendre" if self.rule is None else self.rule, steps)

    def _integrate(self, probe: Probe) -> Derivatives:
        path = Path(*self._quadrature(), alone=True)
        try:
            return probe.differentiate(reduce="units" if self.units else "dot", paths=[path], reference=True)
        except UnsupportedError as error:
            raise UnsupportedError(f"{self.name}: {error} exact=True needs no derivatives.") from error

    def _gap(
        self, probe: Probe, found: Derivatives
    ) -> tuple[Float[Tensor, "batch column"], Float[Tensor, "batch column"]]:
        """The largest gap of a step's scores, and what it is compared with."""
        assert found.there is not None
        lost = found.here.view(*found.here.shape, *(1,) * (found.there.dim() - 2)) - found.there
        # Tokens have units and features have losses, so with units only their sums can be compared.
        gap = found.values.sum((2, -1)) - lost.sum(2) if self.units else (found.values - lost).abs().amax(2)
        scale = lost.abs().sum(2)
        if found.layers:
            gap, scale = gap.abs().amax(-1), scale.amin(-1)
        return gap.abs(), scale.maximum(found.here.abs()).clamp_min(1e-12)


def losses(probe: Probe) -> Float[Tensor, "batch column feature *layer"]:
    """What every column loses with one feature at a time at the baseline; 0 for features that cannot change."""
    import torch

    who, feature = probe.free.nonzero(as_tuple=True)
    lost = torch.zeros(*probe.here.shape, probe.feature_count)
    if len(who):
        masks = torch.nn.functional.one_hot(feature, probe.feature_count).bool()
        values = probe.respond(who, masks)
        here = probe.here[who].view(*values.shape[:2], *(1,) * (values.dim() - 2))
        lost = values.new_zeros(*lost.shape, *values.shape[2:])
        lost[who, :, feature] = here - values
    return lost
