"""What comes back: the answers of a probe, and of a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Gap:
    """How far an identity was from holding, for every example and column.

    Attributes:
        name: Name of the check, such as ``"completeness"``.
        gap: Absolute difference between the two sides of the identity, in units of the target.
        scale: What the gap is compared with; the check's value is ``gap / scale``.
        tolerance: Largest value that passes; ``"exact"`` and ``"quadrature"`` stand for the tolerance
            of the model's precision, ``"single"`` for that of numbers which models compute in float32 at best
            (softmax); None makes the check informative.
        note: A sentence for people.
    """

    name: str
    gap: Float[Tensor, "batch column"]
    scale: Float[Tensor, "batch column"]
    tolerance: float | Literal["exact", "quadrature", "single"] | None
    note: str = ""


@dataclass(frozen=True)
class Extra:
    """Further scores: between other pairs than step and token, or of something else than tokens.

    Attributes:
        values: One number per example, query token of a stream, key token of a stream, then the extra axes. Without a
            stream: per example and column, then the extra axes.
        stream: The stream that both belong to, 0 for the encoder; None where the first axis holds the columns.
        axes: Names of the extra axes, in the order token (only without a stream), layer, head, unit.
        labels: Labels of the extra axes.
    """

    values: Float[Tensor, "batch ..."]
    stream: int | None
    axes: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


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
        defined: Where a score means something, as far as the method knows more than that a step sees only what
            precedes it; False makes a cell NaN. None: everywhere.
        error: Standard error of every score, where the method samples.
        extras: Further scores by name.
        each: Like `record`, but one entry per example, such as how well a fit of its own went.
    """

    scores: Float[Tensor, "batch column feature ..."]
    axes: tuple[str, ...] = ()
    per: Literal["token", "feature"] = "feature"
    merge: Literal["sum", "l1", "l2", "linf"] = "sum"
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    defined: Bool[Tensor, "batch column feature"] | None = None
    error: Float[Tensor, "batch column feature ..."] | None = None
    extras: Mapping[str, Extra] = field(default_factory=dict)
    each: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Derivatives:
    """The answer to ``differentiate``.

    Attributes:
        values: Derivatives of every column, contracted and summed over the points as asked.
        layers: Labels of the layer axis when several layers were asked for, else empty.
        here: Target at the clean input.
        there: Target with the site set to the reference, per layer when there are several; with several
            references the mean over the points; where features are alone on their way, of each feature
            [batch, column, feature (, layer)]; None when the question had no reference, or, by rules, where the
            site is not all that the target depends on.
        record: Plain data: mode, rows, vector-Jacobian and Jacobian-vector products, chunks, and ``path``,
            the number of the path that was taken.
        gaps: Checks that every derivative carries (no-op, leak, adjoint).
        error: Standard errors of the values, of a sampled path of several points.
        drift: Of a sampled path with a reference: standard error of the mean, over the points, of how far the
            sum of a point's shares is from ``f(x) - f(its reference)``; per layer when there are several.
    """

    values: Float[Tensor, "batch column ..."]
    layers: tuple[str, ...]
    here: Float[Tensor, "batch column"]
    there: Float[Tensor, "batch column ..."] | None
    record: Mapping[str, Any]
    gaps: tuple[Gap, ...]
    error: Float[Tensor, "batch column ..."] | None = None
    drift: Float[Tensor, "batch column ..."] | None = None


@dataclass(frozen=True)
class Zeroed:
    """The answer to ``zero``.

    Attributes:
        moved: How far the states of the stack with the steps moved, at every place and layer, by the removal of
            each feature, or of each token of the token axis.
        query: Which place predicts each step.
        encoder: The same of the encoder's states, at all its positions; None without an encoder, or where
            nothing of the source was removed.
        tokens: The token of the token axis that each feature is, or -1 for several, or none.
        mixture: How far attention patterns are from mixing values as the model does, the worst place and layer.
        record: Plain data: rows, and rows per pass.
    """

    moved: Float[Tensor, "batch place feature layer"]
    query: Int[Tensor, "batch step"]
    encoder: Float[Tensor, "batch position feature layer"] | None
    tokens: Int[Tensor, "batch feature"]
    mixture: Float[Tensor, "batch column"]
    record: Mapping[str, Any]
