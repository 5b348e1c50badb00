"""LIME: a linear model of the target around the input, in features that are there or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Removal, check_removal
from whence.core.errors import InputError, unknown_name
from whence.methods.perturbation.masks import clusters, random_masks, with_ends
from whence.methods.perturbation.regression import Fit, fit_lasso, fit_ridge
from whence.methods.perturbation.variants import by_step, make_answer, players, removed_values

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_PENALTY = {"ridge": 1.0, "lasso": 0.01, "ols": 0.0}
_LEAST = 256
_PER_FEATURE = 8


@dataclass(frozen=True)
class Lime(AbstractMethod):
    """The coefficient of a feature in a linear model that is fitted to the target around the input.

    ``v_t(z) ~ c + sum_i A[t, i] z_i`` over random rows z of kept (1) and removed (0) features, each weighted by
    ``exp(-D(z)^2 / (2 width^2))`` with ``D = 1 - sqrt(k / K)`` the cosine distance of a row that keeps k of K
    features from the input: signed, in units of the target. Rows are shared by all steps, and every step has its
    own fit, on the features that it can see. The penalty pulls scores to zero, the more the fewer the rows:
    scores tell features apart, they are not shares of anything. How well a line fits is in the record (``r2``).

    Source: Ribeiro, Singh and Guestrin 2016, equation 1 and section 3.4.

    Attributes:
        n_samples: Rows in all, at least 4, with that of the input and that without any feature; None takes 256, or
            8 for each feature where that is more.
        width: Width of the kernel, greater than 0.
        surrogate: ``"ridge"``, ``"lasso"`` (on standardised features) or ``"ols"`` (ordinary least squares).
        alpha: Penalty of ridge (by default 1) or lasso (by default 0.01).
        keep_prob: Probability with which a row keeps each feature; None draws it for each row, uniformly, so that
            every number of kept features is as likely.
        antithetic: Every second row keeps what the one before it removes.
        removal: How features are removed: ``"replace"``, ``"delete"`` or ``"knockout"``, as in occlusion.
    """

    n_samples: int | None = None
    width: float = 0.25
    surrogate: Literal["ridge", "lasso", "ols"] = "ridge"
    alpha: float | None = None
    keep_prob: float | None = None
    antithetic: bool = True
    removal: Removal = "replace"

    name: ClassVar[str] = "lime"
    title: ClassVar[str] = "coefficients of a linear model fitted around the input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ("ribeiro2016",)
    cost: ClassVar[str] = "(n + 1)F"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"

    def __post_init__(self) -> None:
        check_removal(self.removal)
        if self.surrogate not in _PENALTY:
            raise unknown_name("surrogate of lime:", str(self.surrogate), _PENALTY)
        if self.n_samples is not None and self.n_samples < 4:
            raise InputError(f"lime: n_samples is at least 4, not {self.n_samples}.")
        if not self.width > 0:
            raise InputError(f"lime: width is greater than 0, not {self.width}.")
        if self.alpha is not None and (self.surrogate == "ols" or not self.alpha > 0):
            raise InputError(
                f"lime: alpha={self.alpha} with surrogate={self.surrogate!r}: a penalty is greater than 0, and ols "
                "has none."
            )
        check_keep_prob("lime", self.keep_prob, self.antithetic)

    @property
    def replaces(self) -> bool:
        """Only a replacement is by something."""
        return self.removal == "replace"

    def __call__(self, probe: Probe) -> Answer:
        """Ask for all rows, and fit every step on the features it can see."""
        counted = players(probe)
        rows = [self._rows(probe.seed, one.any(0)) for one in counted]
        values = removed_values(probe, [~kept for kept in rows], removal=self.removal)
        scores = np.zeros(counted.shape)
        error = None if self.surrogate == "lasso" else np.zeros(counted.shape)
        facts: dict[str, list[list[float | None]]] = {name: [] for name in ("r2", "condition", "effective_rows")}
        for example, (kept, found) in enumerate(zip(rows, values, strict=True)):
            fits = [self._fit(kept[:, able], v) for able, v in zip(counted[example], found.T, strict=True)]
            for column, (fit, _) in enumerate(fits):
                able = counted[example, column]
                scores[example, column, able] = fit.weights
                if error is not None and fit.error is not None:
                    error[example, column, able] = fit.error
            facts["r2"].append([fit.r2 for fit, _ in fits])
            facts["condition"].append([fit.condition for fit, _ in fits])
            facts["effective_rows"].append([effective for _, effective in fits])
        return make_answer(
            probe,
            scores,
            clean=np.stack([found[0] for found in values]),
            removal=self.removal,
            error=error,
            each={
                "n_samples": [len(kept) for kept in rows],
                **{name: by_step(probe, found) for name, found in facts.items()},
            },
        )

    def _rows(self, seed: int, able: Bool[np.ndarray, " feature"]) -> Bool[np.ndarray, "row feature"]:
        features = int(able.sum())
        count = max(_LEAST, _PER_FEATURE * features) if self.n_samples is None else self.n_samples
        if self.surrogate == "ols" and count < 2 * features:
            raise InputError(
                f"lime: {count} rows are too few for {features} features without a penalty. Take n_samples of at least "
                f"{2 * features}, larger segments, or surrogate='ridge'."
            )
        drawn = random_masks(seed, self.name, able, count - 2, keep_prob=self.keep_prob, antithetic=self.antithetic)
        return with_ends(drawn, able)

    def _fit(self, kept: Bool[np.ndarray, "row feature"], values: Float[np.ndarray, " row"]) -> tuple[Fit, float]:
        """The linear model of one step, and how many equally weighted rows its rows are worth."""
        kernel = cosine_kernel(kept, self.width)
        x = kept.astype(float)
        alpha = _PENALTY[self.surrogate] if self.alpha is None else self.alpha
        if self.surrogate == "lasso":
            fit = fit_lasso(x, values, kernel, alpha=alpha)
        else:
            drawn = clusters(len(x), antithetic=self.antithetic, first=2)
            fit = fit_ridge(x, values, kernel, alpha=alpha, clusters=drawn)
        return fit, float(kernel.sum() ** 2 / (kernel**2).sum())


def cosine_kernel(kept: Bool[np.ndarray, "row feature"], width: float) -> Float[np.ndarray, " row"]:
    """How near each row is to the input: ``exp(-D^2 / (2 width^2))``, D the cosine distance."""
    share = kept.mean(1) if kept.shape[1] else np.ones(len(kept))
    return np.exp(-((1 - np.sqrt(share)) ** 2) / (2 * width**2))


def check_keep_prob(method: str, keep_prob: float | None, antithetic: bool) -> None:
    """Refuse a probability that is none, or under which the complement of a row has another law.

    Raises:
        InputError: It is so.
    """
    if keep_prob is not None and not 0 < keep_prob < 1:
        raise InputError(f"{method}: keep_prob is between 0 and 1, not {keep_prob}.")
    if antithetic and keep_prob not in (None, 0.5):
        raise InputError(
            f"{method}: with keep_prob={keep_prob} a row that keeps what another removes is of another law. Set "
            "antithetic=False."
        )
