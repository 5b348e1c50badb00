"""`ModelProbe`: what methods ask. A model, one batch of teacher-forced sequences, and the number explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whence.core.contract import (
    AT_INPUT,
    Accept,
    Anatomy,
    Derivatives,
    Fold,
    Path,
    Reduction,
    Removal,
    Rules,
    Stage,
    Subject,
    Vocabulary,
    Zeroed,
    Zeroing,
)
from whence.core.errors import ModelError, UnsupportedError
from whence.core.tokens import Token
from whence.models.model import Model
from whence.probe.baseline import Baseline, replaceable
from whence.probe.batch import Batch
from whence.probe.beside import rows_beside
from whence.probe.checks import check_finite
from whence.probe.derivatives import take_derivatives
from whence.probe.features import (
    at_baseline,
    coarser_features,
    defined_features,
    feature_of,
    feature_streams,
    free_features,
    outside_features,
)
from whence.probe.foil import Foil
from whence.probe.layers import Layers, leaf, stage_data
from whence.probe.measuring import sum_columns
from whence.probe.observe import fold_stages, observe
from whence.probe.payload import run_data, score_run
from whence.probe.plan import Shape, shape_of
from whence.probe.variants import exchange_tokens, remove_features
from whence.probe.vocabulary import vocabulary
from whence.probe.zeroing import zero_features
from whence.step_functions import StepFunction
from whence.text.segments import segment_tokens

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class ModelProbe:
    """A model with one batch of sequences and the number to be explained.

    Attributes:
        model: The model.
        batch: The sequences.
        target: The step function that is explained.
        layers: The sites that derivatives are taken at.
        groups: For each sequence, its features as lists of token indices.
        fixed: For each sequence and token, whether it keeps its true value.
        asked: For each sequence and token, whether its side is asked for.
        here: Target of every column on the clean input, from `measure`.
        baselines: The references of the input; empty for zero, at the site itself.
        mode: ``"auto"``, ``"reverse"``, ``"forward"`` or ``"finite"``.
        thorough: Run also the checks that cost passes of their own.
        seed: Seed of everything that samples.
        foil: What steps are compared with, where the target compares.
    """

    model: Model
    batch: Batch
    target: StepFunction
    layers: Layers
    groups: tuple[list[list[int]], ...]
    fixed: tuple[list[bool], ...]
    asked: tuple[list[bool], ...]
    here: Float[Tensor, "example column"]
    baselines: tuple[Baseline, ...] = ()
    mode: str = "auto"
    thorough: bool = False
    seed: int = 0
    foil: Foil | None = None

    def observe(self, sites: Sequence[str]) -> dict[str, Tensor]:
        """Named internal values of the clean run of every sequence.

        Args:
            sites: Names of sites.

        Returns:
            For each name, its value for the padded batch, in the site's own axes, on the CPU.

        Raises:
            UnknownNameError: No site of that name.
        """
        leaves = [leaf(self.model.architecture.site(name), 0) for name in sites]
        leaves.sort(key=lambda one: one["order"])
        run = run_data(self.model, self.batch, reads=leaves)
        return self.model.run(observe, run=run, leaves=leaves, count=len(self.batch.sequences))

    def fold(self, stages: Sequence[Stage], step: Fold, data: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a function makes of internal values of the clean run, stage by stage, where the model is.

        Args:
            stages: What is read together, in the order of the forward pass.
            step: The function; it travels (see `whence.probe.observe.fold_stages`).
            data: Plain data for it.

        Returns:
            What it found, on the CPU.

        Raises:
            UnknownNameError: No site of a name.
            UnsupportedError: The target compares with another run, and a fold sees one.
        """
        if self.foil is not None and (self.foil.logits is not None or self.foil.beside is not None):
            raise UnsupportedError(
                f"contrast: the parts of {self.target.name} are found in one run; take evaluate='main' in contrast."
            )
        found = [stage_data(self.model.architecture, stage) for stage in stages]
        reads = [one for stage in found for one in stage["leaves"]]
        return self.model.run(
            fold_stages,
            run={**run_data(self.model, self.batch, reads=reads), "foil": self.target_run()["foil"]},
            stages=found,
            step=step,
            data=dict(data),
            count=len(self.groups),
            chunk=1 if self.model.rows_interact else len(self.groups),
        )

    def respond(
        self,
        examples: Int[Tensor, " row"],
        masks: Bool[Tensor, "row feature"],
        *,
        removal: Removal = "replace",
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        rows: int | None = None,
    ) -> Float[Tensor, "row column *layer"]:
        """Target values with features removed from the input, one row per variant.

        Args:
            examples: The sequence that each row is a variant of.
            masks: True where a row's feature is removed. Fixed tokens stay, whatever the mask says.
            removal: ``"replace"`` by the baseline (at the sites of `layers`), ``"delete"`` the tokens, or
                ``"knockout"``: no other token attends to them.
            layers: Blocks in which they are knocked out; None is all.
            heads: Heads in which they are knocked out; None is all.
            rows: Rows per forward pass; None is what fits.

        Returns:
            One value per row and column, and per layer where several sites were asked for.

        Raises:
            UnsupportedError: The model cannot run that variant.
            NonFiniteScore: A value is NaN or infinite.
        """
        steps = remove_features(self, examples, masks, removal=removal, layers=layers, heads=heads, rows=rows)
        return self._columns_of(examples, steps)

    def resample(
        self,
        examples: Int[Tensor, " row"],
        ids: Int[Tensor, "row token"],
        *,
        top: int | None = None,
        rows: int | None = None,
    ) -> Float[Tensor, "row column"]:
        """Target values with other tokens in the input; what is explained stays the same tokens.

        Args:
            examples: The sequence that each row is a variant of.
            ids: The ids that each row reads, on the padded token axis.
            top: Instead of the target, how many steps of each column have their token among the ``top`` most
                probable.
            rows: Rows per forward pass; None is what fits.

        Returns:
            One value per row and column.

        Raises:
            NonFiniteScore: A value is NaN or infinite.
        """
        return self._columns_of(examples, exchange_tokens(self, examples, ids, top=top, rows=rows))

    def zero(self, question: Zeroing) -> Zeroed:
        """How far the states of every layer move when nobody gets the values of a feature.

        Args:
            question: What is removed, and how states are compared.

        Returns:
            The distances.
        """
        return zero_features(self, question)

    def _columns_of(
        self, examples: Int[Tensor, " row"], steps: Float[Tensor, "layer row step"]
    ) -> Float[Tensor, "row column *layer"]:
        import torch

        columns = self.batch.columns[examples]
        values = torch.stack([sum_columns(columns, one) for one in steps], dim=-1)
        values = values if self.layers.labels else values.squeeze(-1)
        return check_finite(self.model, self.batch, values, "target values")

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
        """Derivatives of every column with respect to the sites of `layers`.

        Args:
            reduce: ``"dot"`` contracts with the displacement from the reference and sums over the tokens
                of a feature; ``"units"`` multiplies without summing; ``"gradient"`` is the gradient
                itself; ``"l1"``, ``"l2"``, ``"linf"`` are norms over units of the gradient's sum over the points;
                ``"squares"`` sums its squares over units, at each point; ``"variance"`` is its variance over
                the points, summed over units.
            paths: Where on the way from reference to clean value, and with which weights. Of several paths the
                first is taken that ``accept`` accepts, else the last.
            accept: Whether a path was fine enough; it travels to where the model runs. Needs a reference.
            reference: Whether there is a reference; without one it is zero at the site.
            of: What is differentiated: ``"target"``, or of the last hidden state what `whence.probe.cotangents` says:
                ``"logit"``, ``"norm"`` or ``"fisher"``.
            rank: How many main directions ``"fisher"`` takes.
            rules: ``"deeplift"`` puts the multipliers between the input and a reference in place of derivatives; then
                every point is the input, and ``there`` is None where a layer is not all that the target depends on.

        Returns:
            Values [example, column, feature (, layer)] for ``"dot"``, [example, column, token (, layer)
            (, unit)] otherwise.

        Raises:
            NonFiniteScore: Something came out as NaN or infinite; the message says where.
            UnsupportedError: Forward mode was asked for, and some operation has no tangent; or only
                derivatives along directions are to be had, and the whole gradient was asked for.
        """
        return take_derivatives(
            self, reduce=reduce, paths=paths, accept=accept, reference=reference, of=of, rank=rank, rules=rules
        )

    @property
    def baseline(self) -> Baseline | None:
        """The reference of the input, or None; of several the first."""
        return self.baselines[0] if self.baselines else None

    def feature_of(self) -> Int[Tensor, "example token"]:
        """The feature of each place of the padded token axis, or -1."""
        return feature_of(self.batch, self.groups)

    @property
    def feature_count(self) -> int:
        """Features of the sequence that has most."""
        return max(len(groups) for groups in self.groups)

    @property
    def columns(self) -> Float[Tensor, "example column step"]:
        """Weight of every step in every column."""
        return self.batch.columns

    @property
    def layer_labels(self) -> tuple[str, ...]:
        """Labels of the layer axis; empty when there is none."""
        return self.layers.labels

    @property
    def widths(self) -> tuple[int, ...]:
        """Padded length of every stream."""
        return self.batch.widths

    @property
    def anatomy(self) -> Anatomy:
        """The model's stacks and sites."""
        found = self.model.architecture
        return Anatomy(found.n_layers, found.head_count, tuple(found.sites), found.absent, found.sinks)

    @property
    def unit(self) -> str:
        """Unit of the target."""
        return self.target.unit

    @property
    def divergence(self) -> bool:
        """Whether the target is how far the distribution is from that of the unchanged run, and 0 without a change."""
        return self.foil is not None and self.foil.itself

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that the model reads, and those that could stand in their places."""
        return vocabulary(self.model, self.batch, self.feature_of().masked_fill(~self.changeable(), -1))

    def places(self, chosen: Callable[[Token], bool]) -> Bool[Tensor, "example token"]:
        """The places of the padded token axis whose token is chosen."""
        return self.batch.mask([[chosen(token) for token in one.tokens] for one in self.batch.sequences])

    def coarser(self, segments: Any) -> Int[Tensor, "example feature"]:
        """The segment of another partition of the tokens that each feature begins in, or -1.

        Args:
            segments: The partition, as `whence.text.segments.segment_tokens` takes it.

        Returns:
            Numbers of segments, in the order of the text.
        """
        wholes = [segment_tokens(one.tokens, segments) for one in self.batch.sequences]
        return coarser_features(self.groups, wholes)

    @property
    def defined(self) -> Bool[Tensor, "example column feature"]:
        """Which features each column can look at."""
        return defined_features(self.batch, self.groups, self.asked, self.layers.streams)

    @property
    def outside(self) -> Bool[Tensor, "example column feature"]:
        """Which features each column looks at from outside."""
        return outside_features(self.batch, self.feature_of(), self.feature_count)

    @property
    def streams(self) -> Int[Tensor, "example feature"]:
        """The stream that each feature begins in, or -1."""
        return feature_streams(self.batch, self.feature_of(), self.feature_count)

    @property
    def free(self) -> Bool[Tensor, "example feature"]:
        """Which features a removal changes."""
        return free_features(self.feature_of(), self.changeable(), self.feature_count)

    def changeable(self) -> Bool[Tensor, "example token"]:
        """Which places of the padded token axis a removal changes."""
        import torch

        asked = self.batch.mask(self.asked) & (self.feature_of() >= 0)
        if self.layers.deep:
            # Below the first layer every position holds something of others, also that of a fixed token.
            parts = asked.split(list(self.widths), dim=1)
            return torch.cat([part & (k in self.layers.streams) for k, part in enumerate(parts)], dim=1)
        free = asked & self.batch.mask([[not kept for kept in flags] for flags in self.fixed])
        if self.baseline is None:
            return free
        return free & torch.cat(self.reference()["replace"], dim=1) & ~at_baseline(self.batch, self.baseline)

    def target_run(self) -> dict[str, Any]:
        """The batch with what the target needs, as plain data for programs."""
        return score_run(self.model, self.batch, [self.target], self.foil, self.seed)

    @property
    def row_width(self) -> int:
        """Rows that run for every row: itself, and those that the target needs beside it."""
        return 1 + rows_beside(self.target_run())

    def shape(self) -> Shape:
        """The sizes that decide about memory."""
        model, kept = self.model, self.target_run()["keep"]
        stacks = tuple(zip(model.architecture.n_layers.values(), self.batch.widths, strict=True))
        return shape_of(model.config, stacks, self.batch.widths[-1] if kept is None else kept, model.dtype.itemsize)

    def reference(self) -> dict[str, Any]:
        """The reference input, as plain data for programs; of several the first.

        Raises:
            ModelError: None was resolved.
        """
        return self.references()[0]

    def references(self) -> list[dict[str, Any]]:
        """Every reference of the input, as plain data for programs.

        Raises:
            ModelError: None was resolved.
        """
        if not self.baselines:
            raise ModelError("a reference was asked for, but none was resolved.")
        return [
            {"values": list(one.values), "replace": replaceable(self.batch, one, list(self.fixed))}
            for one in self.baselines
        ]
