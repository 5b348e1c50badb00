"""Kernel SHAP: Shapley values by a regression with a fixed sum."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Removal, check_removal
from whence.core.errors import InputError
from whence.methods.perturbation.masks import all_masks, clusters, random_masks, with_ends
from whence.methods.perturbation.regression import Fit, fit_with_sum
from whence.methods.perturbation.variants import (
    by_step,
    make_answer,
    players,
    removed_values,
    shares_gap,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_LEAST = 2048
_PER_FEATURE = 2


@dataclass(frozen=True)
class KernelShap(AbstractMethod):
    """The Shapley value of each feature: its mean effect over all orders in which features could be added.

    ``A[t] = argmin_b sum_z w(z) (v_t(z) - v_t(nothing) - z . b)^2`` with ``sum_i b_i = v_t(x) - v_t(nothing)``,
    over rows z that keep k of the K features that step t can see, with the weight ``(K - 1) / (C(K, k) k (K - k))``:
    signed, in units of the target, additive over steps. The scores of a step sum to the difference between the
    input and nothing. With no more than n_samples subsets of the features, all are taken and the values are exact;
    else rows are drawn, shared by all steps, and ``standard_error`` says how far to trust the values (about two
    thirds of them are that near).

    Source: Lundberg and Lee 2017, theorem 2.

    Attributes:
        n_samples: Rows in all, at least 4, with that of the input and that without any feature; None takes 2048, and
            2 for each feature.
        antithetic: Every second row keeps what the one before it removes.
        removal: How features are removed: ``"replace"``, ``"delete"`` or ``"knockout"``, as in occlusion.
    """

    n_samples: int | None = None
    antithetic: bool = True
    removal: Removal = "replace"

    name: ClassVar[str] = "kernel_shap"
    title: ClassVar[str] = "Shapley values by weighted regression; scores sum to the difference"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ("lundberg2017",)
    cost: ClassVar[str] = "(n + 1)F"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"

    def __post_init__(self) -> None:
        check_removal(self.removal)
        if self.n_samples is not None and self.n_samples < 4:
            raise InputError(f"kernel_shap: n_samples is at least 4, not {self.n_samples}.")

    @property
    def replaces(self) -> bool:
        """Only a replacement is by something."""
        return self.removal == "replace"

    def __call__(self, probe: Probe) -> Answer:
        """Ask for all rows, and solve every step on the features it can see."""
        counted = players(probe)
        rows, exact = zip(*(self._rows(probe.seed, one.any(0)) for one in counted), strict=True)
        values = removed_values(probe, [~kept for kept in rows], removal=self.removal)
        scores, error = np.zeros(counted.shape), np.zeros(counted.shape)
        facts: dict[str, list[list[float | None]]] = {"r2": [], "condition": []}
        for example, (kept, found) in enumerate(zip(rows, values, strict=True)):
            fits = []
            for column, able in enumerate(counted[example]):
                fit = self._fit(kept[:, able], found[:, column], every=exact[example])
                scores[example, column, able] = fit.weights
                if not exact[example]:
                    error[example, column, able] = fit.error
                fits.append(fit)
            facts["r2"].append([fit.r2 for fit in fits])
            facts["condition"].append([fit.condition for fit in fits])
        full, empty = (np.stack([found[k] for found in values]) for k in (0, 1))
        return make_answer(
            probe,
            scores,
            clean=full,
            removal=self.removal,
            error=error,
            gaps=(shares_gap(scores, full, empty),),
            each={
                "n_samples": [len(kept) for kept in rows],
                "exact": list(exact),
                "empty": by_step(probe, empty.tolist()),
                **{name: by_step(probe, found) for name, found in facts.items()},
            },
        )

    def _rows(self, seed: int, able: Bool[np.ndarray, " feature"]) -> tuple[Bool[np.ndarray, "row feature"], bool]:
        """The input, nothing, and either all subsets or drawn ones; and whether it is all."""
        features = int(able.sum())
        count = _LEAST + _PER_FEATURE * features if self.n_samples is None else self.n_samples
        if 2**features <= count:
            return with_ends(all_masks(able)[1:-1], able), True
        return with_ends(random_masks(seed, self.name, able, count - 2, antithetic=self.antithetic), able), False

    def _fit(self, kept: Bool[np.ndarray, "row feature"], values: Float[np.ndarray, " row"], *, every: bool) -> Fit:
        """The Shapley values of one step."""
        features = kept.shape[1]
        if features == 0:
            return Fit(np.zeros(0), float(values[1]), None, 1.0, np.zeros(0))
        weights = shapley_kernel(features, every=every)[kept.sum(1)]
        inside = weights > 0
        return fit_with_sum(
            kept[inside].astype(float),
            values[inside],
            weights[inside],
            bias=float(values[1]),
            total=float(values[0] - values[1]),
            clusters=clusters(len(kept), antithetic=self.antithetic, first=2)[inside],
        )


def shapley_kernel(features: int, *, every: bool) -> Float[np.ndarray, " kept"]:
    """Weight of a row by the number of features that it keeps; 0 for all and for none, which the sum takes care of.

    Args:
        features: How many features there are.
        every: Rows are all subsets; else they were drawn so that every number of kept features is as likely, and
            the weight makes up for that.

    Returns:
        One weight for each number from 0 to `features`.
    """
    weights = np.zeros(features + 1)
    for kept in range(1, features):
        drawn = 1 / (features + 1)
        weights[kept] = (features - 1) / (kept * (features - kept)) / (comb(features, kept) if every else drawn)
    return weights
