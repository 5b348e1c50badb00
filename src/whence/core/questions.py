"""What a probe is asked: the words and the data that questions are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from whence.core.errors import unknown_name

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["dot", "units", "gradient", "l1", "l2", "linf", "squares", "variance"]
Subject = Literal["target", "logit", "norm", "fisher"]
Rules = Literal["deeplift"]
Removal = Literal["replace", "delete", "knockout"]
Metric = Literal["cosine", "euclidean", "relative"]
# From shares [..., token], f(clean) and f(reference) to whether a path was fine enough.
Accept = Callable[["Tensor", "Tensor", "Tensor"], bool]
# Called with the nnsight model, a state, a stage and its values; see `whence.probe.observe.fold_stages`.
Fold = Callable[[Any, dict[str, Any], dict[str, Any], dict[str, "Tensor"]], None]


def check_removal(removal: str) -> None:
    """Refuse a way of removing features that does not exist.

    Raises:
        UnknownNameError: It is none of `Removal`.
    """
    if removal not in get_args(Removal):
        raise unknown_name("way of removing a feature", str(removal), get_args(Removal))


@dataclass(frozen=True)
class Stage:
    """Sites that are read together in a forward pass, such as those of one block.

    Attributes:
        name: What the stage is called; a fold's results may be keyed by it.
        sites: Short name -> name of the site, in any order.
        facts: Plain data for the fold about this stage, such as the number of the layer.
    """

    name: str
    sites: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Words:
    """A way that leads from word to word of the vocabulary (Sanyal and Ren 2021), instead of straight.

    Attributes:
        anchors: Words on the way of each token.
        neighbors: The next word is one of so many that are nearest to the last.
        strategy: Which of them: ``"greedy"``, the one that has to be moved least for the way to be monotone, or
            ``"maxcount"``, the one that is between the last and the reference in most dimensions.
    """

    anchors: int
    neighbors: int
    strategy: Literal["greedy", "maxcount"]


@dataclass(frozen=True)
class Path:
    """Where derivatives are taken, one row of the model each, and what each of them counts.

    A site's way leads from its reference (0) to its clean value (1); without a reference, from zero.

    Attributes:
        points: Where on the way.
        weights: Weight of each point in the sum.
        legs: Start and stop of the stretch of the way that each derivative is multiplied with; empty: all of it.
        origins: At which of several references each point's way starts; empty: at the first.
        noise: Standard deviation of Gaussian noise added at every point, in units of the root mean square of
            each token's clean value; fixed tokens get none.
        carried: The noise is part of the input, so it is also part of what the derivative is multiplied with.
        item: Name of the random numbers of the noise (see `whence.core.random`); row ``k`` is for point ``k``.
        alone: One feature at a time is on its way and the others are clean, with a row for each feature.
        words: The way leads over words; None: straight.
        sampled: The points are draws of equal weight, whose scatter gives a standard error.
    """

    points: Sequence[float] = (1.0,)
    weights: Sequence[float] = (1.0,)
    legs: Sequence[tuple[float, float]] = ()
    origins: Sequence[int] = ()
    noise: float = 0.0
    carried: bool = False
    item: str = ""
    alone: bool = False
    words: Words | None = None
    sampled: bool = False


AT_INPUT: tuple[Path, ...] = (Path(),)


@dataclass(frozen=True)
class Zeroing:
    """The question ``zero``: whose values nobody gets, and how the states that follow are compared with clean ones.

    Every block gets its clean input, so that a distance is what the removal does in that block alone.

    Attributes:
        heads: For ``"decoder"`` (its self attention), ``"cross"`` and ``"encoder"``, the heads of each layer that
            lose the values.
        metric: Half the squared distance of the directions, ``"cosine"``; the ``"euclidean"`` distance; or that
            ``"relative"`` to the length of the clean state.
        each: What is removed at a time: a feature that some column sees, or a token.
        everywhere: Compare the states of all positions of the stack with the steps; else of those that predict a
            step.
        final_norm: The last layer's state is what its stack's last norm makes of it.
        rows: Rows per forward pass; None is what fits.
    """

    heads: Mapping[str, Sequence[Sequence[int]]]
    metric: Metric = "cosine"
    each: Literal["feature", "token"] = "feature"
    everywhere: bool = False
    final_norm: bool = False
    rows: int | None = None
