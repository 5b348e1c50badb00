"""What methods and places agree on. Neither imports the other; both import this.

A method is arithmetic on the answers to three questions that a `Probe` puts to a model: what are the
named internal values of the run (observe), what are the target values under replaced inputs (respond),
what are the derivatives of all targets (differentiate).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from whence.core.questions import AT_INPUT as AT_INPUT
from whence.core.questions import Accept as Accept
from whence.core.questions import Fold as Fold
from whence.core.questions import Metric as Metric
from whence.core.questions import Path as Path
from whence.core.questions import Reduction as Reduction
from whence.core.questions import Removal as Removal
from whence.core.questions import Rules as Rules
from whence.core.questions import Stage as Stage
from whence.core.questions import Subject as Subject
from whence.core.questions import Words as Words
from whence.core.questions import Zeroing as Zeroing
from whence.core.questions import check_removal as check_removal
from whence.core.replies import Answer as Answer
from whence.core.replies import Derivatives as Derivatives
from whence.core.replies import Extra as Extra
from whence.core.replies import Gap as Gap
from whence.core.replies import Zeroed as Zeroed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from whence.core.tokens import Token


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
    def divergence(self) -> bool:
        """Whether the target is how far the distribution is from that of the unchanged run, and 0 without a change."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that the model reads, and those that could stand in their places; made anew on every access."""
        ...

    def places(self, chosen: Callable[[Token], bool]) -> Bool[Tensor, "batch token"]:
        """The places of the token axis whose token is chosen; never padding."""
        ...

    def coarser(self, segments: Any) -> Int[Tensor, "batch feature"]:
        """The segment of another partition that holds each feature's first token; -1 for no feature."""
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
        against_itself: Step functions that compare, and that it can explain without a contrast: compared is with the
            unchanged run.
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
    against_itself: ClassVar[frozenset[str]] = frozenset()
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
