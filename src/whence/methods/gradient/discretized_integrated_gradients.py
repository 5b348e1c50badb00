"""Discretized integrated gradients: a path that leads over words instead of between them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Gap, Need, Path, Probe, Words
from whence.core.errors import InputError, UnsupportedError, unknown_name
from whence.methods.gradient.completeness import shares_gap

_RULES = ("trapezoid", "left")
_STRATEGIES = ("greedy", "maxcount")
_TOLERANCE = 5e-2


@dataclass(frozen=True)
class DiscretizedIntegratedGradients(AbstractMethod):
    """Integrated gradients along a path whose points are close to words of the vocabulary.

    ``A[t, i] = sum over k of < G_k , P_{k+1,i} - P_k,i >`` with ``G_k = (g(P_k) + g(P_{k+1})) / 2``: signed, in
    units of the target, additive over steps. From each token a chain of near words leads towards the baseline;
    its points are these words, moved as far as is needed for every dimension to go one way only. All tokens move
    together. The scores of a step sum to ``f(x) - f(b)`` up to the width of the steps, which the check
    ``completeness`` shows; ``upscale`` halves it. The vocabulary's geometry decides where the path leads.

    Source: Sanyal and Ren 2021.

    Attributes:
        n_anchors: Words on the way of each token, 1 to 200.
        n_neighbors: The next word is one of so many that are nearest to the last, at least 2.
        strategy: Which: ``"greedy"``, the one that has to be moved least, or ``"maxcount"``, the one that lies
            between the last word and the baseline in most dimensions.
        upscale: How many times a point is put in the middle of every step, 0 to 10.
        rule: ``"trapezoid"``, or ``"left"`` (the paper's code): ``G_k = g(P_k)``.
        units: Keep the products of each unit, with an axis of units, instead of their sum.
    """

    n_anchors: int = 30
    n_neighbors: int = 500
    strategy: Literal["greedy", "maxcount"] = "greedy"
    upscale: int = 0
    rule: Literal["trapezoid", "left"] = "trapezoid"
    units: bool = False

    name: ClassVar[str] = "discretized_integrated_gradients"
    title: ClassVar[str] = "gradients along a way over words from a baseline; scores sum to the difference"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ("sanyal2021",)
    cost: ClassVar[str] = "((m + 1) 2^upscale + 1) (1F + min(T VJPs, K JVPs)) + 3F, and m searches among all words"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"

    def __post_init__(self) -> None:
        for option, least, most in (("n_anchors", 1, 200), ("n_neighbors", 2, None), ("upscale", 0, 10)):
            value = getattr(self, option)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or value < least or (most is not None and value > most):
                limits = f"at least {least}" if most is None else f"{least} to {most}"
                raise InputError(f"{self.name}: {option} is a whole number, {limits}, not {value!r}.")
        if self.strategy not in _STRATEGIES:
            raise unknown_name(f"strategy of {self.name}:", str(self.strategy), _STRATEGIES)
        if self.rule not in _RULES:
            raise unknown_name(f"rule of {self.name}:", str(self.rule), _RULES)

    @property
    def directional(self) -> bool:
        """The products are summed over units, unless each is asked for."""
        return not self.units

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the derivatives along the way, and state what they must add up to."""
        if probe.baseline is None:
            raise UnsupportedError(f"{self.name} needs a baseline to come from.")
        found = probe.differentiate(reduce="units" if self.units else "dot", paths=[self._path()], reference=True)
        gap, scale = shares_gap(found, units=self.units)
        note = "sum of scores against f(x) - f(baseline)"
        tolerance = _TOLERANCE if self.rule == "trapezoid" else None
        return Answer(
            found.values,
            axes=("unit",) * self.units,
            per="token" if self.units else "feature",
            gaps=(*found.gaps, Gap("completeness", gap, scale, tolerance, note)),
            record=found.record,
        )

    def _path(self) -> Path:
        """Points at equal shares of the way, each with the stretch whose derivative it stands for."""
        steps = (self.n_anchors + 1) * 2**self.upscale
        at = [k / steps for k in range(steps + 1)]
        words = Words(self.n_anchors, self.n_neighbors, self.strategy)
        if self.rule == "left":
            return Path(at[:-1], [1.0] * steps, legs=list(pairwise(at)), words=words)
        # Half of the step before a point and half of the step after it.
        legs = [(at[max(k - 1, 0)], at[min(k + 1, steps)]) for k in range(steps + 1)]
        return Path(at, [0.5] * (steps + 1), legs=legs, words=words)
