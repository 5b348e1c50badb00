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
    Stage,
)
from whence.core.errors import ModelError, UnsupportedError
from whence.core.progress import Progress
from whence.core.tokens import Token
from whence.models.model import Model
from whence.probe.baseline import Baseline, replaceable
from whence.probe.batch import Batch
from whence.probe.checks import check_finite, derivative_gaps
from whence.probe.differentiate import differentiate
from whence.probe.features import defined_features, feature_of, free_features
from whence.probe.layers import Layers, embedding_leaves, leaf, stage_data
from whence.probe.measure import measure
from whence.probe.observe import fold_stages, observe
from whence.probe.payload import run_data, score_data
from whence.probe.plan import Plan, Shape, choose_mode, make_plan, shape_of
from whence.probe.variants import exchange_tokens, remove_features
from whence.step_functions import StepFunction

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

# A comparison of both modes costs about two forward passes: unnoticed beside this many columns.
_ADJOINT_COLUMNS = 16


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
        baseline: The reference of the input, or None (zero, at the site itself).
        mode: ``"auto"``, ``"reverse"``, ``"forward"`` or ``"finite"``.
        thorough: Run also the checks that cost passes of their own.
        seed: Seed of everything that samples.
    """

    model: Model
    batch: Batch
    target: StepFunction
    layers: Layers
    groups: tuple[list[list[int]], ...]
    fixed: tuple[list[bool], ...]
    asked: tuple[list[bool], ...]
    here: Float[Tensor, "example column"]
    baseline: Baseline | None = None
    mode: str = "auto"
    thorough: bool = False
    seed: int = 0

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
        return self.model.run(
            observe, run=run_data(self.model, self.batch), leaves=leaves, count=len(self.batch.sequences)
        )

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
        """
        return self.model.run(
            fold_stages,
            run=run_data(self.model, self.batch),
            stages=[stage_data(self.model.architecture, stage) for stage in stages],
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
        self, examples: Int[Tensor, " row"], ids: Int[Tensor, "row token"], *, rows: int | None = None
    ) -> Float[Tensor, "row column"]:
        """Target values with other tokens in the input; what is explained stays the same tokens.

        Args:
            examples: The sequence that each row is a variant of.
            ids: The ids that each row reads, on the padded token axis.
            rows: Rows per forward pass; None is what fits.

        Returns:
            One value per row and column.

        Raises:
            NonFiniteScore: A value is NaN or infinite.
        """
        return self._columns_of(examples, exchange_tokens(self, examples, ids, rows=rows))

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
    ) -> Derivatives:
        """Derivatives of every column with respect to the sites of `layers`.

        Args:
            reduce: ``"dot"`` contracts with the displacement from the reference and sums over the tokens
                of a feature; ``"units"`` multiplies without summing; ``"gradient"`` is the gradient
                itself; ``"l1"``, ``"l2"``, ``"linf"`` are its norms over units.
            paths: Where on the line from reference (0) to clean value (1), and with which weights. Of several
                paths the first is taken that ``accept`` accepts, else the last.
            accept: Whether a path was fine enough; it travels to where the model runs. Needs a reference.
            reference: Whether there is a reference; without one it is zero at the site.

        Returns:
            Values [example, column, feature (, layer)] for ``"dot"``, [example, column, token (, layer)
            (, unit)] otherwise.

        Raises:
            NonFiniteScore: Something came out as NaN or infinite; the message says where.
            UnsupportedError: Forward mode was asked for, and some operation has no tangent; or only
                derivatives along directions are to be had, and the whole gradient was asked for.
        """
        points = sum(len(path[0]) for path in paths)
        plan, pairs = self.plan(reduce=reduce, points=points, reference=reference)
        if reduce != "dot" and plan.mode in ("forward", "finite"):
            kind = "forward mode gives" if plan.mode == "forward" else "finite differences give"
            raise UnsupportedError(
                f"{kind} derivatives along directions, and this method needs the whole gradient. "
                "Use mode='reverse' or 'auto', where gradients are to be had."
            )
        otherwise = None
        if plan.mode == "forward" and self.mode == "auto":
            second = self._sized("reverse", points, len(pairs))
            otherwise = {"mode": "reverse", "rows": second.rows, "products": second.products}
        columns = self.batch.columns.shape[1]
        adjoint = self.thorough or plan.mode == "forward" or columns >= _ADJOINT_COLUMNS
        with Progress("derivatives", plan.forwards + plan.derivatives) as bar:
            found = self.model.run(
                differentiate,
                run=run_data(self.model, self.batch),
                score=score_data(self.target),
                embeds=embedding_leaves(self.model.architecture),
                groups=self.layers.groups,
                reference=self.reference() if reference else None,
                features=self._features(reference, pairs),
                question={
                    "paths": [{"points": list(at), "weights": list(weights)} for at, weights in paths],
                    "accept": accept,
                    "reduce": reduce,
                    "mode": plan.mode,
                    "rows": plan.rows,
                    "products": plan.products,
                    "otherwise": otherwise,
                    "adjoint": adjoint and plan.mode != "finite",
                    "advance": bar.advance if self.model.remote is None else None,
                },
            )
        if "no_tangent" in found:
            raise UnsupportedError(f"forward mode is not possible here: {found['no_tangent']} Use mode='reverse'.")
        values = self._finite(found["values"].movedim(0, 3), "derivatives")
        there = None if found["there"] is None else self._finite(found["there"].movedim(0, 2), "reference run")
        if not self.layers.labels:
            values = values.squeeze(3)
            there = None if there is None else there.squeeze(2)
        record = {
            "mode": found["mode"],
            **found["counts"],
            "rows_per_pass": plan.rows,
            "products_per_pass": plan.products,
            "path": found["path"],
        }
        if found["note"]:
            record["mode_note"] = found["note"]
        gaps = derivative_gaps(self.model, self.here, found)
        return Derivatives(values, self.layers.labels, self.here, there, record, gaps)

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
    def widths(self) -> tuple[int, ...]:
        """Padded length of every stream."""
        return self.batch.widths

    @property
    def anatomy(self) -> Anatomy:
        """The model's stacks and sites."""
        found = self.model.architecture
        return Anatomy(found.n_layers, found.head_count, tuple(found.sites), found.absent)

    def places(self, chosen: Callable[[Token], bool]) -> Bool[Tensor, "example token"]:
        """The places of the padded token axis whose token is chosen."""
        return self.batch.mask([[chosen(token) for token in one.tokens] for one in self.batch.sequences])

    @property
    def defined(self) -> Bool[Tensor, "example column feature"]:
        """Which features each column can look at."""
        return defined_features(self.batch, self.groups, self.asked, self.layers.streams)

    @property
    def free(self) -> Bool[Tensor, "example feature"]:
        """Which features a perturbation can change."""
        return free_features(self.feature_of(), self.changeable(), self.feature_count)

    def changeable(self) -> Bool[Tensor, "example token"]:
        """Which places of the padded token axis a perturbation may change."""
        import torch

        free = self.batch.mask([[not kept for kept in flags] for flags in self.fixed]) & (self.feature_of() >= 0)
        return free & torch.cat(self.reference()["replace"], dim=1) if self.baseline is not None else free

    def plan(self, *, reduce: Reduction, points: int, reference: bool) -> tuple[Plan, Int[Tensor, "row two"]]:
        """Chunk sizes of a question, and the rows that forward mode would run.

        Args:
            reduce: As in `differentiate`.
            points: Number of points.
            reference: Whether there is a reference.

        Returns:
            The plan, and pairs of example and feature that can have a displacement.
        """
        import torch

        free = self._free() if reference else self.batch.mask(self.asked)
        pairs = []
        most = 0
        for row, groups in enumerate(self.groups):
            able = free[row][self.batch.slots[row]].tolist()
            moved = [k for k, members in enumerate(groups) if any(able[token] for token in members)]
            pairs += [(row, k) for k in moved]
            most = max(most, len(moved))
        columns = self.batch.columns.shape[1]
        chosen = choose_mode(self.mode, features=most, columns=columns, contracts=reduce == "dot")
        return self._sized(chosen, points, len(pairs)), torch.tensor(pairs, dtype=torch.long).view(-1, 2)

    def _sized(self, mode: str, points: int, features: int) -> Plan:
        model = self.model
        return make_plan(
            self.shape(),
            mode=mode,
            examples=len(self.groups),
            points=points,
            features=features,
            columns=self.batch.columns.shape[1],
            free=model.free_bytes(),
            cpu=model.device.type == "cpu",
            most=1 if model.rows_interact else None,
        )

    def shape(self) -> Shape:
        """The sizes that decide about memory."""
        model = self.model
        return shape_of(
            model.config,
            sum(model.architecture.n_layers.values()),
            self.batch.width,
            self.batch.keep(),
            model.dtype.itemsize,
        )

    def _finite(self, values: Tensor, what: str) -> Tensor:
        return check_finite(self.model, self.batch, values, what, self.target)

    def _features(self, reference: bool, pairs: Int[Tensor, "row two"]) -> dict[str, Any]:
        of = self.feature_of()
        if not reference:
            of = of.masked_fill(~self.batch.mask(self.asked), -1)
        return {
            "of": of,
            "count": self.feature_count,
            "offsets": self.batch.offsets,
            "width": self.batch.width,
            "last": self.batch.last_seen(),
            "start": self.batch.offsets[-1],
            "rows": pairs,
        }

    def reference(self) -> dict[str, Any]:
        """The reference input, as plain data for programs.

        Raises:
            ModelError: None was resolved.
        """
        if self.baseline is None:
            raise ModelError("a reference was asked for, but none was resolved.")
        masks = replaceable(self.batch, self.baseline, list(self.fixed))
        return {"values": list(self.baseline.values), "replace": masks}

    def _free(self) -> Bool[Tensor, "example token"]:
        import torch

        if self.layers.deep:
            # Below the first layer every position holds something of every token before it.
            return self.feature_of() >= 0
        return torch.cat(self.reference()["replace"], dim=1)


def measure_batch(model: Model, batch: Batch, functions: Sequence[StepFunction]) -> list[Float[Tensor, "example step"]]:
    """Step functions of the clean input, all from one pass.

    Args:
        model: The model.
        batch: The sequences.
        functions: The step functions.

    Returns:
        One tensor per step function; where none is asked for, nothing is run.

    Raises:
        NonFiniteScore: A value is NaN or infinite.
        ModelError: ... and the reason is that the model's weights are.
    """
    if not functions:
        return []
    scores = [score_data(function) for function in functions]
    found = model.run(measure, run=run_data(model, batch), scores=scores, count=len(batch.sequences))
    return [check_finite(model, batch, values, one.name) for one, values in zip(functions, found, strict=True)]


def sum_columns(
    columns: Float[Tensor, "row column step"], steps: Float[Tensor, "row step"]
) -> Float[Tensor, "row column"]:
    """The sum of the steps that each column spans."""
    import einops

    return einops.einsum(columns, steps.to(columns), "row column step, row step -> row column")
