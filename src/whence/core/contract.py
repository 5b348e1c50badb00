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
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from whence.core.tokens import Token

Reduction = Literal["dot", "units", "gradient", "l1", "l2", "linf", "squares", "variance"]
Subject = Literal["target", "logit", "norm", "fisher"]
Rules = Literal["deeplift"]
Removal = Literal["replace", "delete", "knockout"]
Metric = Literal["cosine", "euclidean", "relative"]
# From shares [..., token], f(clean) and f(reference) to whether a path was fine enough.
Accept = Callable[["Tensor", "Tensor", "Tensor"], bool]
# Called with the nnsight model, a state, a stage and its values; see `whence.probe.observe.fold_stages`.
Fold = Callable[[Any, dict[str, Any], dict[str, Any], dict[str, "Tensor"]], None]


class Need(Enum):
    """Something a method reads from, or does to, the model; a place declares which it provides."""

    LOGITS = "output logits"
    EMBEDDINGS = "edits of the input embeddings"
    INTERNALS = "values inside the blocks"
    GRADIENTS = "gradients"
    ATTENTION = "attention patterns"


# What each place can give; the reasons, and what to do about them, are with the places.
PLACES: Mapping[str, frozenset[Need]] = {
    "here": frozenset(Need),
    "ndif": frozenset(Need),
    "ndif without trust": frozenset(Need) - {Need.GRADIENTS},
    "petals": frozenset({Need.LOGITS, Need.EMBEDDINGS, Need.GRADIENTS}),
}


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
class Anatomy:
    """What a method may know of the model: its stacks, and the names of its sites.

    Attributes:
        layers: Number of blocks of each stack, ``"encoder"`` before ``"decoder"``.
        heads: Number of query heads of each stack.
        sites: The names of all sites, in the order of the forward pass.
        absent: Names that other architectures have, and why this one does not.
        sinks: Whether an attention pattern may give some of a query's weight to no token.
    """

    layers: Mapping[str, int]
    heads: Mapping[str, int]
    sites: tuple[str, ...]
    absent: Mapping[str, str]
    sinks: bool = False

    @property
    def encoder_decoder(self) -> bool:
        """Whether the source has a stack of its own."""
        return len(self.layers) > 1

    def site(self, stack: str, name: str, layer: int | None = None) -> str:
        """The full name of a site of a stack, such as ``decoder.blocks.3.attn.pattern``."""
        start = f"{stack}." if self.encoder_decoder else ""
        return f"{start}{name}" if layer is None else f"{start}blocks.{layer}.{name}"

    def has(self, stack: str, name: str, layer: int | None = None) -> bool:
        """Whether there is a site of that name."""
        return self.site(stack, name, layer) in self.sites

    def before(self, stack: str, first: str, second: str, layer: int | None = None) -> bool:
        """Whether both sites exist, and the model comes by the first before the second."""
        names = [self.site(stack, name, layer) for name in (first, second)]
        return all(name in self.sites for name in names) and self.sites.index(names[0]) < self.sites.index(names[1])


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that the model reads, and those that could stand in their places, as plain data.

    Attributes:
        ids: The id at each place of the padded token axis.
        present: Whether a place has a token, and is not padding.
        feature: The feature of a place that may change, else -1.
        classes: For every id, the number of its lexical class (see `whence.text.lexical_classes`); -1 where it
            is never to be put into a text: it is special, or stands for nothing.
        names: What the classes are called. One class where there is no tokenizer.
        texts: For every id, its characters; empty where there is no tokenizer.
        starts: For every id, whether it begins a word; empty where there is no tokenizer.
    """

    ids: Int[Tensor, "batch token"]
    present: Bool[Tensor, "batch token"]
    feature: Int[Tensor, "batch token"]
    classes: Int[Tensor, " id"]
    names: tuple[str, ...]
    texts: tuple[str, ...]
    starts: tuple[bool, ...]


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
class Derivatives:
    """The answer to ``differentiate``.

    Attributes:
        values: Derivatives of every column, contracted and summed over the points as asked.
        layers: Labels of the layer axis when several layers were asked for, else empty.
        here: Target at the clean input.
        there: Target with the site set to the reference, per layer when there are several; with several
            references the mean over the points; where features are alone on their way, of each feature
            [batch, column, feature (, layer)]; None when the question had no reference.
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


class Probe(Protocol):
    """A model with one batch of teacher-forced sequences and the number to be explained."""

    @property
    def baseline(self) -> Any:
        """The resolved reference of the input, or None; of several the first."""
        ...

    @property
    def baselines(self) -> Sequence[Any]:
        """The resolved references of the input, of a method that takes several."""
        ...

    @property
    def seed(self) -> int:
        """Seed of everything that samples (see `whence.core.random`)."""
        ...

    @property
    def here(self) -> Float[Tensor, "batch column"]:
        """The target on the clean input."""
        ...

    @property
    def columns(self) -> Float[Tensor, "batch column step"]:
        """Weight of every step in every column."""
        ...

    @property
    def feature_count(self) -> int:
        """Features (tokens or segments) of the sequence that has most."""
        ...

    @property
    def defined(self) -> Bool[Tensor, "batch column feature"]:
        """Which features each column can look at; False for features that a sequence does not have."""
        ...

    @property
    def outside(self) -> Bool[Tensor, "batch column feature"]:
        """Which features each column looks at from outside: some step sees it, and is not read from inside it."""
        ...

    @property
    def free(self) -> Bool[Tensor, "batch feature"]:
        """Which features a removal changes: some token of theirs is asked for, not fixed, not at the baseline."""
        ...

    @property
    def streams(self) -> Int[Tensor, "batch feature"]:
        """The stream that each feature begins in; -1 for features that a sequence does not have."""
        ...

    @property
    def layer_labels(self) -> tuple[str, ...]:
        """Labels of the layer axis of answers; empty when they have none."""
        ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Padded length of every stream; the token axis is the streams one after another."""
        ...

    @property
    def anatomy(self) -> Anatomy:
        """The model's stacks and sites."""
        ...

    @property
    def unit(self) -> str:
        """Unit of the target."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that the model reads, and those that could stand in their places; made anew on every access."""
        ...

    def places(self, chosen: Callable[[Token], bool]) -> Bool[Tensor, "batch token"]:
        """The places of the token axis whose token is chosen; never padding."""
        ...

    def observe(self, sites: Sequence[str]) -> dict[str, Tensor]:
        """Named internal values of the clean run."""
        ...

    def fold(self, stages: Sequence[Stage], step: Fold, data: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a function makes of internal values, stage by stage, where the model is."""
        ...

    def respond(
        self,
        examples: Tensor,
        masks: Tensor,
        *,
        removal: Removal = "replace",
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        rows: int | None = None,
    ) -> Tensor:
        """Target values with features removed, one row per variant."""
        ...

    def resample(self, examples: Tensor, ids: Tensor, *, top: int | None = None, rows: int | None = None) -> Tensor:
        """Target values with other tokens in the input, one row per variant.

        With ``top``, how many steps of each column have their token among the ``top`` most probable.
        """
        ...

    def zero(self, question: Zeroing) -> Zeroed:
        """How far the states of every layer move when nobody gets the values of a feature."""
        ...

    def differentiate(
        self,
        *,
        reduce: Reduction,
        paths: Sequence[Path] = AT_INPUT,
        accept: Accept | None = None,
        reference: bool = False,
        of: Subject = "target",
        rank: int = 1,
        rules: Rules | None = None,
    ) -> Derivatives:
        """Derivatives of every column with respect to the asked site, or multipliers by rules in their place.

        With several paths the first that ``accept`` accepts is taken, else the last. ``of`` says what is
        differentiated: the target, the token's logit, the length of the last state, or the ``rank`` main
        directions of the distribution in the Fisher metric. With ``rules`` every point is the input, and is compared
        with the reference that its way starts at.
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
        several_baselines: Whether ``baseline`` may be a list of references that it averages over.
        view: How extra axes are reduced for display when the user does not say.
        layer: Whether it can be asked at an intermediate site instead of the input (``layer=``).
        perturbs: Whether it puts something else in the place of tokens, so that those of ``keep=`` stay as they
            are and score 0.
        encoder_decoder: Whether it works with models that read their source with an encoder.
        targets: Step functions that it can explain; None is any. Empty: it explains no number of the output,
            and a target is refused.
        defaults: What ``target``, ``segments``, ``steps``, ``sides``, ``step_scores`` mean for it when the user
            does not say, where that is not what it is for all others.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    cites: ClassVar[tuple[str, ...]]
    cost: ClassVar[str]
    additive: ClassVar[bool]
    signed: ClassVar[bool]
    auto_baseline: ClassVar[Literal["dedicated", "zero"] | None] = None
    several_baselines: ClassVar[bool] = False
    perturbs: ClassVar[bool] = False
    view: ClassVar[Mapping[str, str]] = {"layer": "mean", "head": "mean", "unit": "sum"}
    layer: ClassVar[bool] = False
    encoder_decoder: ClassVar[bool] = True
    targets: ClassVar[frozenset[str] | None] = None
    defaults: ClassVar[Mapping[str, Any]] = {}

    @property
    def replaces(self) -> bool:
        """Whether, with these options, it puts a baseline in the place of features; else a baseline is refused."""
        return self.auto_baseline is not None

    @property
    def required(self) -> frozenset[Need]:
        """What it needs with the options it has; `needs` says what it may need."""
        return self.needs

    @property
    def directional(self) -> bool:
        """Whether derivatives along the features' displacements are all it asks for.

        Then forward mode and finite differences can serve it; else it needs the whole gradient.
        """
        return False

    @abstractmethod
    def __call__(self, probe: Probe) -> Answer:
        """Compute the scores of one batch."""
