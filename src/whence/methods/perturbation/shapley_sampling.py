"""Shapley values by permutations: features are added in random orders."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Removal
from whence.core.errors import InputError
from whence.core.random import stream
from whence.methods.perturbation.masks import clusters
from whence.methods.perturbation.variants import (
    by_step,
    check_removal,
    make_answer,
    players,
    removed_values,
    shares_gap,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class ShapleySampling(AbstractMethod):
    """The Shapley value of each feature: its mean effect when features are added in random orders.

    ``A[t, i] = mean over orders of v_t(those before i, and i) - v_t(those before i)``: signed, in units of the
    target, additive over steps. In every order the effects add up to the difference between the input and
    nothing, so the scores do. A random order of all features is one of those that a step can see, so all steps
    share the rows. ``standard_error`` says how far to trust the values; with no more than n_permutations orders,
    all are taken and the values are exact.

    Source: Castro, Gomez and Tejada 2009; with reversed orders, Mitchell et al. 2022.

    Attributes:
        n_permutations: Number of orders, at least 2.
        antithetic: Every second order is the one before it, reversed.
        removal: How features are removed: ``"replace"``, ``"delete"`` or ``"knockout"``, as in occlusion.
    """

    n_permutations: int = 25
    antithetic: bool = True
    removal: Removal = "replace"

    name: ClassVar[str] = "shapley_sampling"
    title: ClassVar[str] = "Shapley values by adding tokens in random orders; scores sum to the difference"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ("castro2009", "mitchell2022")
    cost: ClassVar[str] = "(n (K - 1) + 3)F"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = "dedicated"

    def __post_init__(self) -> None:
        check_removal(self.removal)
        if self.n_permutations < 2:
            raise InputError(f"shapley_sampling: n_permutations is at least 2, not {self.n_permutations}.")

    @property
    def replaces(self) -> bool:
        """Only a replacement is by something."""
        return self.removal == "replace"

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the rows of all orders, and average what each feature adds."""
        counted = players(probe)
        orders, exact = zip(*(self._orders(probe.seed, one.any(0)) for one in counted), strict=True)
        rows = [growing(order, counted.shape[2]) for order in orders]
        asked = [(~one & able.any(0)).reshape(-1, one.shape[-1]) for one, able in zip(rows, counted, strict=True)]
        values = removed_values(probe, asked, removal=self.removal)
        scores, error = np.zeros(counted.shape), np.zeros(counted.shape)
        for example, (order, found) in enumerate(zip(orders, values, strict=True)):
            added = np.diff(found.reshape(len(order), -1, found.shape[-1]), axis=1)
            effects = np.zeros((len(order), counted.shape[2], found.shape[-1]))
            np.put_along_axis(effects, order[:, :, None], added, axis=1)
            # What a step cannot see adds nothing to it, but for rounding.
            effects = np.where(counted[example], effects.swapaxes(1, 2), 0.0)
            scores[example] = effects.mean(0)
            if not exact[example]:
                drawn = clusters(len(order), antithetic=self.antithetic)
                error[example] = mean_error(effects - scores[example], drawn)
        full, empty = (np.stack([found[k] for found in values]) for k in (-1, 0))
        return make_answer(
            probe,
            scores,
            clean=full,
            removal=self.removal,
            error=error,
            gaps=(shares_gap(scores, full, empty),),
            each={
                "n_permutations": [len(order) for order in orders],
                "exact": list(exact),
                "empty": by_step(probe, empty.tolist()),
            },
        )

    def _orders(self, seed: int, able: Bool[np.ndarray, " feature"]) -> tuple[Int[np.ndarray, "order player"], bool]:
        """Orders in which the features are added; and whether it is all of them."""
        where = np.flatnonzero(able)
        # So many features have more orders than anybody asks for.
        if len(where) < 20 and factorial(len(where)) <= self.n_permutations:
            return np.array(list(permutations(where)), dtype=int).reshape(factorial(len(where)), -1), True
        made = []
        for number in range(self.n_permutations):
            if self.antithetic and number % 2:
                made.append(made[-1][::-1])
            else:
                made.append(where[np.argsort(stream(seed, self.name, number).random(len(able))[where])])
        return np.stack(made), False


def growing(orders: Int[np.ndarray, "order player"], features: int) -> Bool[np.ndarray, "order row feature"]:
    """Which features each order has added after 0, 1, 2, ... of them."""
    count, players = orders.shape
    kept = np.zeros((count, players + 1, features), dtype=bool)
    for step in range(players):
        kept[:, step + 1] = kept[:, step]
        kept[np.arange(count), step + 1, orders[:, step]] = True
    return kept


def mean_error(left: Float[np.ndarray, "sample ..."], drawn: Int[np.ndarray, " sample"]) -> Float[np.ndarray, "..."]:
    """Standard error of a mean of samples, some of which were drawn together.

    Args:
        left: Samples less their mean.
        drawn: The cluster of each sample.
    """
    count = int(drawn.max()) + 1
    sums = np.zeros((count, *left.shape[1:]))
    np.add.at(sums, drawn, left)
    return np.sqrt((sums**2).sum(0) * count / max(count - 1, 1)) / len(left)
