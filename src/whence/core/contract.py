"""What methods and places agree on. Neither imports the other; both import this.

A method is arithmetic on the answers to three questions that a `Probe` puts to a model: what are the
named internal values of the run (observe), what are the target values under replaced inputs (respond),
what are the derivatives of all targets (differentiate).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Reduction = Literal["dot", "units", "gradient", "l1", "l2", "linf"]
# Points on the line from reference (0) to clean value (1), and the weight of each in the sum.
Path = tuple[Sequence[float], Sequence[float]]
# From shares [..., token], f(clean) and f(reference) to whether a path was fine enough.
Accept = Callable[["Tensor", "Tensor", "Tensor"], bool]
AT_INPUT: tuple[Path, ...] = (((1.0,), (1.0,)),)


class Need(Enum):
    """Something a method reads from, or does to, the model; a place declares which it provides."""

    LOGITS = "output logits"
    EMBEDDINGS = "edits of the input embeddings"
    INTERNALS = "values inside the blocks"
    GRADIENTS = "gradients"
    ATTENTION = "attention patterns"


@dataclass(frozen=True)
class Gap:
    """How far an identity was from holding, for every example and column.

    Attributes:
        name: Name of the check, such as ``"completeness"``.
        gap: Absolute difference between the two sides of the identity, in units of the target.
        scale: What the gap is compared with; the check's value is ``gap / scale``.
        tolerance: Largest value that passes; ``"exact"`` and ``"quadrature"`` stand for the tolerance
            of the model's precision, None makes the check informative.
        note: A sentence for people.
    """

    name: str
    gap: Float[Tensor, "batch column"]
    scale: Float[Tensor, "batch column"]
    tolerance: float | Literal["exact", "quadrature"] | None
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """What a method returns.

    Attributes:
        scores: One number per example, column and token or feature, then the extra axes.
        axes: Names of the extra axes, in the order layer, head, unit.
        per: Whether the third axis of `scores` counts tokens or features (segments).
        merge: How the tokens of a segment combine when `per` is ``"token"``.
        labels: Labels of the extra axes.
        gaps: The method's identities.
        record: Plain data on how it was computed (derivative mode, passes, path).
    """

    scores: Float[Tensor, "batch column feature ..."]
    axes: tuple[str, ...] = ()
    per: Literal["token", "feature"] = "feature"
    merge: Literal["sum", "l1", "l2", "linf"] = "sum"
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Derivatives:
    """The answer to ``differentiate``.

    Attributes:
        values: Derivatives of every column, contracted and averaged over the points as asked.
        layers: Labels of the layer axis when several layers were asked for, else empty.
        here: Target at the clean input.
        there: Target with the site set to the reference, per layer when there are several; None when
            the question had no reference.
        record: Plain data: mode, rows, vector-Jacobian and Jacobian-vector products, chunks, and ``path``,
            the number of the path that was taken.
        gaps: Checks that every derivative carries (no-op, leak, adjoint).
    """

    values: Float[Tensor, "batch column ..."]
    layers: tuple[str, ...]
    here: Float[Tensor, "batch column"]
    there: Float[Tensor, "batch column ..."] | None
    record: Mapping[str, Any]
    gaps: tuple[Gap, ...]


class Probe(Protocol):
    """A model with one batch of teacher-forced sequences and the number to be explained."""

    @property
    def baseline(self) -> Any:
        """The resolved reference of the input, or None."""
        ...

    @property
    def here(self) -> Float[Tensor, "batch column"]:
        """The target on the clean input."""
        ...

    @property
    def feature_count(self) -> int:
        """Features (tokens or segments) of the sequence that has most."""
        ...

    def observe(self, sites: Sequence[str]) -> dict[str, Tensor]:
        """Named internal values of the clean run."""
        ...

    def respond(self, examples: Tensor, masks: Tensor, rows: int = 16) -> Tensor:
        """Target values with features replaced by the reference."""
        ...

    def differentiate(
        self,
        *,
        reduce: Reduction,
        paths: Sequence[Path] = AT_INPUT,
        accept: Accept | None = None,
        reference: bool = False,
    ) -> Derivatives:
        """Derivatives of every column with respect to the asked site.

        With several paths the first that ``accept`` accepts is taken, else the last.
        """
        ...


@dataclass(frozen=True)
class AbstractMethod(ABC):
    """An attribution method: options are fields, the call is arithmetic on a probe's answers.

    Class attributes:
        name: The name users type.
        title: One line for lists.
        needs: What it needs from the model and the place.
        cites: Papers, as keys of the bibliography in the docs.
        cost: The cost formula, with F one forward pass of one row.
        additive: A span's score is the sum of its steps' scores.
        signed: Whether scores carry a sign.
        auto_baseline: What ``baseline="auto"`` means for it: a rule, or ``"zero"``, or None if unused.
        view: How extra axes are reduced for display when the user does not say.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    cites: ClassVar[tuple[str, ...]]
    cost: ClassVar[str]
    additive: ClassVar[bool]
    signed: ClassVar[bool]
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = None
    view: ClassVar[Mapping[str, str]] = {"layer": "mean", "head": "mean", "unit": "sum"}

    @property
    def directional(self) -> bool:
        """Whether derivatives along the features' displacements are all it asks for.

        Then forward mode and finite differences can serve it; else it needs the whole gradient.
        """
        return False

    @abstractmethod
    def __call__(self, probe: Probe) -> Answer:
        """Compute the scores of one batch."""
