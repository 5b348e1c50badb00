"""Shapley values by permutations: features are added in random orders."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from math import factorial
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Removal, check_removal
from whence.core.errors import InputError, unknown_name
from whence.core.random import stream
from whence.methods.perturbation.masks import all_masks, clusters, random_masks, with_ends
from whence.methods.perturbation.variants import (
    by_step,
    make_answer,
    players,
    removed_values,
    shares_gap,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

_VALUES = ("shapley", "banzhaf")
_BLOCK = 4


@dataclass(frozen=True)
class ShapleySampling(AbstractMethod):
    """The Shapley value of each feature: its mean effect when features are added in random orders.

    ``A[t, i] = mean over orders of v_t(those before i, and i) - v_t(those before i)``: signed, in units of the
    target, additive over steps. In every order the effects add up to the difference between the input and
    nothing, so the scores do. A random order of all features is one of those that a step can see, so all steps
    share the rows. ``standard_error`` says how far to trust the values; with no more than n_permutations orders,
    all are taken and the values are exact.

    With ``value="banzhaf"`` it is the mean effect beside a random half of the others, whatever their number; such
    values do not add up to the difference. As many rows are drawn as the orders would take.

    Source: Castro, Gomez and Tejada 2009; with reversed orders, Mitchell et al. 2022.

    Attributes:
        n_permutations: Number of orders, at least 2; at most so many with `max_se`.
        antithetic: Every second order is the one before it, reversed. Banzhaf values have pairs of rows in any case.
        max_se: Orders are drawn, a few at a time, until no standard error is larger than this; each few are a request
            of their own. None takes all at once.
        value: ``"shapley"`` or ``"banzhaf"``.
        removal: How features are removed: ``"replace"``, ``"delete"`` or ``"knockout"``, as in occlusion.
    """

    n_permutations: int = 25
    antithetic: bool = True
    max_se: float | None = None
    value: Literal["shapley", "banzhaf"] = "shapley"
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
        if self.value not in _VALUES:
            raise unknown_name("value of shapley_sampling:", str(self.value), _VALUES)
        if self.value == "banzhaf" and not self.antithetic:
            raise InputError("shapley_sampling: antithetic=False is about orders, and banzhaf values have none.")
        if self.max_se is not None and (self.value == "banzhaf" or not self.max_se > 0):
            raise InputError(
                f"shapley_sampling: max_se={self.max_se!r} with value={self.value!r}: it is greater than 0, and a stop "
                "of Shapley values only."
            )

    @property
    def replaces(self) -> bool:
        """Only a replacement is by something."""
        return self.removal == "replace"

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the rows of all orders, and average what each feature adds."""
        counted = players(probe)
        if self.value == "banzhaf":
            return self._banzhaf(probe, counted)
        orders, exact = zip(*(self._orders(probe.seed, one.any(0)) for one in counted), strict=True)
        # A block is even, so that reversed orders stay with theirs.
        blocks = [
            len(order) if self.max_se is None or every else _BLOCK for order, every in zip(orders, exact, strict=True)
        ]
        effects: list[list[Float[np.ndarray, "order column feature"]]] = [[] for _ in orders]
        ends: list[Float[np.ndarray, "two column"]] = [np.zeros((2, 0))] * len(orders)
        scores, error = np.zeros(counted.shape), np.zeros(counted.shape)
        open_examples = set(range(len(orders)))
        done = 0
        while open_examples:
            parts = [
                order[done * block : (done + 1) * block] if example in open_examples else order[:0]
                for example, (order, block) in enumerate(zip(orders, blocks, strict=True))
            ]
            rows = [growing(part, counted.shape[2]) for part in parts]
            asked = [(~one & able.any(0)).reshape(-1, one.shape[-1]) for one, able in zip(rows, counted, strict=True)]
            values = removed_values(probe, asked, removal=self.removal)
            done += 1
            for example in sorted(open_examples):
                effects[example].append(added(parts[example], values[example], counted[example]))
                ends[example] = values[example][[-1, 0]]
                known = np.concatenate(effects[example])
                scores[example] = known.mean(0)
                if not exact[example]:
                    drawn = clusters(len(known), antithetic=self.antithetic)
                    error[example] = mean_error(known - scores[example], drawn)
                sure = self.max_se is not None and error[example].max(initial=0.0) <= self.max_se
                if sure or len(known) == len(orders[example]):
                    open_examples.remove(example)
        full, empty = (np.stack([found[k] for found in ends]) for k in (0, 1))
        return make_answer(
            probe,
            scores,
            clean=full,
            removal=self.removal,
            error=error,
            gaps=(shares_gap(scores, full, empty),),
            each={
                "n_permutations": [sum(len(part) for part in found) for found in effects],
                "exact": list(exact),
                "empty": by_step(probe, empty.tolist()),
            },
        )

    def _banzhaf(self, probe: Probe, counted: Bool[np.ndarray, "batch column feature"]) -> Answer:
        """Ask for random halves and for what they leave: one of the two has a feature and the other has not."""
        halves, exact = zip(*(self._halves(probe.seed, one.any(0)) for one in counted), strict=True)
        rows = [
            with_ends(np.concatenate([half, ~half | ~one.any(0)]), one.any(0))
            for half, one in zip(halves, counted, strict=True)
        ]
        values = removed_values(probe, [~kept for kept in rows], removal=self.removal)
        scores, error = np.zeros(counted.shape), np.zeros(counted.shape)
        for example, (half, found) in enumerate(zip(halves, values, strict=True)):
            there, gone = np.split(found[2:], 2)
            sign = np.where(half, 1.0, -1.0)
            effects = np.where(counted[example], sign[:, None, :] * (there - gone)[:, :, None], 0.0)
            scores[example] = effects.mean(0)
            if not exact[example]:
                error[example] = mean_error(effects - scores[example], np.arange(len(effects)))
        return make_answer(
            probe,
            scores,
            clean=np.stack([found[0] for found in values]),
            removal=self.removal,
            error=error,
            each={
                "n_samples": [len(kept) for kept in rows],
                "exact": list(exact),
                "empty": by_step(probe, [found[1].tolist() for found in values]),
            },
        )

    def _halves(self, seed: int, able: Bool[np.ndarray, " feature"]) -> tuple[Bool[np.ndarray, "row feature"], bool]:
        """Rows that each keep a half of the features; and whether they, with what they leave, are all subsets."""
        features = int(able.sum())
        count = max(self.n_permutations * features // 2, 1)
        # So many features have more subsets than anybody asks for.
        if features < 30 and 2**features <= 2 * count:
            return all_masks(able)[: max(2**features // 2, 1)], True
        return random_masks(seed, self.name, able, count, keep_prob=0.5, antithetic=False), False

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


def added(
    orders: Int[np.ndarray, "order player"],
    values: Float[np.ndarray, "row column"],
    counted: Bool[np.ndarray, "column feature"],
) -> Float[np.ndarray, "order column feature"]:
    """What each feature adds in each order.

    Args:
        orders: The orders.
        values: The values of all rows of all orders, as `growing` lists them.
        counted: The features that each column can see.
    """
    steps = np.diff(values.reshape(len(orders), -1, values.shape[-1]), axis=1)
    effects = np.zeros((len(orders), counted.shape[1], values.shape[-1]))
    np.put_along_axis(effects, orders[:, :, None], steps, axis=1)
    # What a step cannot see adds nothing to it, but for rounding.
    return np.where(counted, effects.swapaxes(1, 2), 0.0)


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
