"""ContextCite: a sparse linear model of how likely an answer is, in the parts of its context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Removal, check_removal
from whence.core.errors import InputError
from whence.methods.perturbation.masks import random_masks, with_ends
from whence.methods.perturbation.regression import Fit, fit_lasso
from whence.methods.perturbation.variants import by_step, make_answer, players, removed_values

if TYPE_CHECKING:
    from jaxtyping import Float

# Rows that `validate` draws.
_HELD_OUT = 16
# The log-probability nearest to 0 whose odds float32 can still tell.
_SURE = -1e-7


@dataclass(frozen=True)
class ContextCite(AbstractMethod):
    """The weight of a segment in a sparse linear model of how likely the answer is.

    ``log odds of W given z ~ c + sum_i A[W, i] z_i`` over random rows z of kept (1) and removed (0) segments, by
    lasso: signed, in nats. The log odds of a continuation W of probability p are ``ln p - ln(1 - p)``. Most
    weights are exactly 0: such segments have no effect that the rows could tell from none. How well the linear
    model fits is in the record (``r2``).

    Source: Cohen-Wang, Shah, Georgiev and Madry 2024, section 3.

    Attributes:
        n_samples: Random rows, at least 8.
        keep_prob: Probability with which a row keeps each segment.
        alpha: Penalty of the lasso, on standardised features and log odds per token.
        validate: Draw 16 more rows, and report how well the model ranks them (``lds``, Spearman's rank correlation
            between what it predicts and what comes out).
        removal: ``"delete"`` takes the segment's tokens out and numbers the positions of the others anew;
            ``"replace"`` puts the baseline in their place; ``"knockout"`` keeps all other tokens from attending
            to them.
    """

    n_samples: int = 64
    keep_prob: float = 0.5
    alpha: float = 0.01
    validate: bool = False
    removal: Removal = "delete"

    name: ClassVar[str] = "contextcite"
    title: ClassVar[str] = "sparse linear model of the answer's log odds in the sentences of its context"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ("cohenwang2024",)
    cost: ClassVar[str] = "(n + 3)F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"
    targets: ClassVar[frozenset[str] | None] = frozenset({"logprob"})
    defaults: ClassVar[Mapping[str, Any]] = {
        "target": "logprob",
        "segments": "sentence",
        "steps": "whole",
        "sides": ("source",),
    }

    def __post_init__(self) -> None:
        check_removal(self.removal)
        if self.n_samples < 8:
            raise InputError(f"contextcite: n_samples is at least 8, not {self.n_samples}.")
        if not 0 < self.keep_prob < 1:
            raise InputError(f"contextcite: keep_prob is between 0 and 1, not {self.keep_prob}.")
        if not self.alpha > 0:
            raise InputError(f"contextcite: alpha is greater than 0, not {self.alpha}.")

    @property
    def replaces(self) -> bool:
        """Only a replacement is by something."""
        return self.removal == "replace"

    def __call__(self, probe: Probe) -> Answer:
        """Ask for all rows, and fit every column."""
        counted = players(probe)
        drawn = self.n_samples + _HELD_OUT * self.validate
        rows = []
        for one in counted:
            able = one.any(0)
            masks = random_masks(probe.seed, self.name, able, drawn, keep_prob=self.keep_prob, antithetic=False)
            rows.append(with_ends(masks, able))
        values = removed_values(probe, [~kept for kept in rows], removal=self.removal)
        lengths = probe.columns.sum(-1).double().numpy()
        scores = np.zeros(counted.shape)
        facts: dict[str, list[list[float | None]]] = {name: [] for name in ("r2", "condition", "bias", "lds")}
        for example, (kept, found) in enumerate(zip(rows, values, strict=True)):
            fits, ranks = [], []
            for column, able in enumerate(counted[example]):
                x = kept[2:, able].astype(float)
                y = log_odds(found[2:, column])
                fit = self._fit(x[: self.n_samples], y[: self.n_samples], max(lengths[example, column], 1.0))
                scores[example, column, able] = fit.weights
                fits.append(fit)
                ranks.append(rank_correlation(x[self.n_samples :] @ fit.weights, y[self.n_samples :]))
            facts["r2"].append([fit.r2 for fit in fits])
            facts["condition"].append([fit.condition for fit in fits])
            facts["bias"].append([fit.bias for fit in fits])
            facts["lds"].append(ranks)
        if not self.validate:
            del facts["lds"]
        empty = [by_column[1].tolist() for by_column in values]
        return make_answer(
            probe,
            scores,
            clean=np.stack([found[0] for found in values]),
            removal=self.removal,
            record={"n_samples": self.n_samples},
            each={
                "empty": by_step(probe, empty),
                **{name: by_step(probe, found) for name, found in facts.items()},
            },
        )

    def _fit(self, x: Float[np.ndarray, "row feature"], y: Float[np.ndarray, " row"], length: float) -> Fit:
        """Fit log odds per token, so that the penalty means the same for answers of any length."""
        fit = fit_lasso(x, y / length, np.ones(len(x)), alpha=self.alpha)
        return Fit(fit.weights * length, fit.bias * length, fit.r2, fit.condition, None)


def log_odds(logprob: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """``ln p - ln(1 - p)`` from ``ln p``."""
    sure = np.minimum(logprob, _SURE)
    return sure - np.log(-np.expm1(sure))


def rank_correlation(a: Float[np.ndarray, " row"], b: Float[np.ndarray, " row"]) -> float | None:
    """Spearman's correlation of two lists; None where one of them is constant."""
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """Places in ascending order; equal values share the mean of theirs."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]
