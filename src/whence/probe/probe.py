"""`ModelProbe`: what methods ask. A model, one batch of teacher-forced sequences, and the number explained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whence.core.contract import AT_INPUT, Accept, Derivatives, Path, Reduction, Rules
from whence.core.errors import ModelError, UnsupportedError
from whence.core.progress import Progress
from whence.models.model import Model
from whence.probe.baseline import Baseline, replaceable
from whence.probe.batch import Batch
from whence.probe.checks import check_finite, derivative_gaps
from whence.probe.differentiate import differentiate
from whence.probe.layers import Layers, embedding_leaves, leaf
from whence.probe.measure import measure
from whence.probe.observe import observe
from whence.probe.payload import rules_data, run_data, score_data
from whence.probe.plan import Plan, choose_mode, make_plan, shape_of
from whence.probe.respond import respond
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

    def respond(
        self, examples: Int[Tensor, " row"], masks: Bool[Tensor, "row feature"], rows: int = 16
    ) -> Float[Tensor, "row column"]:
        """Target values with features of the input at their reference.

        Args:
            examples: The sequence that each row is a variant of.
            masks: True where a row's feature is replaced by the baseline.
            rows: Rows per forward pass.

        Returns:
            One value per row and column.
        """
        import torch

        of = self.feature_of()[examples]
        padded = torch.cat([masks, torch.zeros(len(masks), 1, dtype=torch.bool)], dim=1)
        tokens = padded.gather(1, torch.where(of < 0, masks.shape[1], of))
        steps = self.model.run(
            respond,
            run=run_data(self.model, self.batch),
            score=score_data(self.target),
            embeds=embedding_leaves(self.model.architecture),
            reference=self._reference(),
            examples=examples,
            masks=list(tokens.split(list(self.batch.widths), dim=1)),
            chunk=1 if self.model.rows_interact else rows,
        )
        return check_finite(self.model, self.batch, sum_columns(self.batch.columns[examples], steps), "target values")

    def differentiate(
        self,
        *,
        reduce: Reduction,
        paths: Sequence[Path] = AT_INPUT,
        accept: Accept | None = None,
        reference: bool = False,
        rules: Rules | None = None,
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
            rules: ``"deeplift"`` puts the multipliers between the input and the reference in place of derivatives;
                then there is one path, whose only point is the input, and ``there`` is None where a layer is
                not all that the target depends on.

        Returns:
            Values [example, column, feature (, layer)] for ``"dot"``, [example, column, token (, layer)
            (, unit)] otherwise.

        Raises:
            NonFiniteScore: Something came out as NaN or infinite; the message says where.
            UnsupportedError: Forward mode was asked for, and some operation has no tangent; or only
                derivatives along directions are to be had, and the whole gradient was asked for.
        """
        points = sum(len(path[0]) for path in paths)
        plan, pairs = self.plan(reduce=reduce, points=points, reference=reference, paired=rules is not None)
        if reduce != "dot" and plan.mode in ("forward", "finite"):
            kind = "forward mode gives" if plan.mode == "forward" else "finite differences give"
            raise UnsupportedError(
                f"{kind} derivatives along directions, and this method needs the whole gradient. "
                "Use mode='reverse' or 'auto', where gradients are to be had."
            )
        if rules is not None and plan.mode == "finite":
            raise UnsupportedError(
                "deeplift has rules in place of derivatives, and finite differences cannot follow them. Leave out "
                "derivative='finite', or take integrated_gradients."
            )
        otherwise = None
        if plan.mode == "forward" and self.mode == "auto":
            second = self._sized("reverse", points, len(pairs), paired=rules is not None)
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
                reference=self._reference() if reference else None,
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
                rules=None if rules is None else rules_data(self.model, self.target),
            )
        if "no_tangent" in found:
            raise UnsupportedError(f"forward mode is not possible here: {found['no_tangent']} Use mode='reverse'.")
        values = self._finite(found["values"].movedim(0, 3), "derivatives")
        if rules is not None and not self.layers.complete:
            found["there"] = None
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
        import torch

        of = torch.full((len(self.groups), self.batch.width), -1)
        for row, groups in enumerate(self.groups):
            for feature, members in enumerate(groups):
                of[row, self.batch.slots[row][members]] = feature
        return of

    @property
    def feature_count(self) -> int:
        """Features of the sequence that has most."""
        return max(len(groups) for groups in self.groups)

    def plan(
        self, *, reduce: Reduction, points: int, reference: bool, paired: bool = False
    ) -> tuple[Plan, Int[Tensor, "row two"]]:
        """Chunk sizes of a question, and the rows that forward mode would run.

        Args:
            reduce: As in `differentiate`.
            points: Number of points.
            reference: Whether there is a reference.
            paired: Whether every row runs with one of its reference.

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
        return self._sized(chosen, points, len(pairs), paired), torch.tensor(pairs, dtype=torch.long).view(-1, 2)

    def _sized(self, mode: str, points: int, features: int, paired: bool = False) -> Plan:
        model = self.model
        shape = shape_of(
            model.config,
            sum(model.architecture.n_layers.values()),
            self.batch.width,
            self.batch.keep(),
            model.dtype.itemsize,
        )
        return make_plan(
            shape,
            mode=mode,
            examples=len(self.groups),
            points=points,
            features=features,
            columns=self.batch.columns.shape[1],
            free=model.free_bytes(),
            cpu=model.device.type == "cpu",
            most=1 if model.rows_interact else None,
            paired=paired,
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

    def _reference(self) -> dict[str, Any]:
        if self.baseline is None:
            raise ModelError("a reference was asked for, but none was resolved.")
        masks = replaceable(self.batch, self.baseline, list(self.fixed))
        return {"values": list(self.baseline.values), "replace": masks}

    def _free(self) -> Bool[Tensor, "example token"]:
        import torch

        if self.layers.deep:
            # Below the first layer every position holds something of every token before it.
            return self.feature_of() >= 0
        return torch.cat(self._reference()["replace"], dim=1)


def measure_batch(model: Model, batch: Batch, functions: Sequence[StepFunction]) -> list[Float[Tensor, "example step"]]:
    """Step functions of the clean input, all from one pass.

    Args:
        model: The model.
        batch: The sequences.
        functions: The step functions.

    Returns:
        One tensor per step function.

    Raises:
        NonFiniteScore: A value is NaN or infinite.
        ModelError: ... and the reason is that the model's weights are.
    """
    scores = [score_data(function) for function in functions]
    found = model.run(measure, run=run_data(model, batch), scores=scores, count=len(batch.sequences))
    return [check_finite(model, batch, values, one.name) for one, values in zip(functions, found, strict=True)]


def sum_columns(
    columns: Float[Tensor, "row column step"], steps: Float[Tensor, "row step"]
) -> Float[Tensor, "row column"]:
    """The sum of the steps that each column spans."""
    import einops

    return einops.einsum(columns, steps.to(columns), "row column step, row step -> row column")
