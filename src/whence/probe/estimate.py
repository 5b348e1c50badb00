"""What a question will cost, before it is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from whence.core.tokens import Token
from whence.probe.derivatives import plan_derivatives
from whence.probe.plan import Plan, Shape, make_plain_plan, make_rows
from whence.probe.probe import ModelProbe
from whence.probe.zeroing import removals, rows_per_pass, zeroing_shape

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """Predicted cost of an attribution.

    Attributes:
        mode: Derivative mode that would be chosen: ``"forward"``, ``"reverse"``, ``"finite"``, or ``""``
            without any.
        forwards: Rows that run forward through the model.
        derivatives: Vector-Jacobian or Jacobian-vector products.
        rows_per_pass: Rows that run at once.
        products_per_pass: Derivatives that run at once for each of these rows; 0 without any.
        peak_bytes: Memory above the model's own.
    """

    mode: str
    forwards: int
    derivatives: int
    rows_per_pass: int
    products_per_pass: int
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.forwards} forward rows, {self.derivatives} derivatives ({self.mode or 'none'}), "
            f"{self.rows_per_pass} rows at once, about {self.peak_bytes / 2**20:.0f} MiB above the model"
        )


def bare_shape(probe: ModelProbe) -> Shape:
    """The sizes of a pass that makes no logits but one position's."""
    return replace(probe.shape(), kept=1)


@dataclass
class DryProbe:
    """A probe that answers zeros and notes what it was asked, so that any method can be priced."""

    probe: ModelProbe
    plans: list[Plan] = field(default_factory=list)

    @property
    def baseline(self) -> Any:
        """The reference of the real probe."""
        return self.probe.baseline

    @property
    def baselines(self) -> Sequence[Any]:
        """The references of the real probe."""
        return self.probe.baselines

    @property
    def here(self) -> Tensor:
        """Zeros: nothing is measured."""
        return self.probe.here

    @property
    def feature_count(self) -> int:
        """Features of the sequence that has most."""
        return self.probe.feature_count

    @property
    def seed(self) -> int:
        """The seed of the real probe."""
        return self.probe.seed

    @property
    def columns(self) -> Tensor:
        """Weight of every step in every column."""
        return self.probe.columns

    @property
    def defined(self) -> Tensor:
        """Which features each column can look at."""
        return self.probe.defined

    @property
    def outside(self) -> Tensor:
        """Which features each column looks at from outside."""
        return self.probe.outside

    @property
    def free(self) -> Tensor:
        """Which features a removal changes."""
        return self.probe.free

    @property
    def streams(self) -> Tensor:
        """The stream that each feature begins in."""
        return self.probe.streams

    @property
    def layer_labels(self) -> tuple[str, ...]:
        """Labels of the layer axis."""
        return self.probe.layer_labels

    @property
    def widths(self) -> tuple[int, ...]:
        """Padded length of every stream."""
        return self.probe.widths

    @property
    def anatomy(self) -> Anatomy:
        """The model's stacks and sites."""
        return self.probe.anatomy

    @property
    def unit(self) -> str:
        """Unit of the target."""
        return self.probe.unit

    @property
    def divergence(self) -> bool:
        """Whether the target is a divergence from the unchanged run."""
        return self.probe.divergence

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the real probe."""
        return self.probe.vocabulary

    def places(self, chosen: Callable[[Token], bool]) -> Tensor:
        """The places whose token is chosen."""
        return self.probe.places(chosen)

    def coarser(self, segments: Any) -> Tensor:
        """The segment of another partition that each feature begins in."""
        return self.probe.coarser(segments)

    def observe(self, sites: Sequence[str]) -> dict[str, Tensor]:
        """The real values: what a method does next may depend on their shapes. One forward pass."""
        self._rows(len(self.probe.groups), len(self.probe.groups), bare_shape(self.probe))
        return self.probe.observe(sites)

    def fold(self, stages: Sequence[Stage], step: Fold, data: Mapping[str, Any]) -> dict[str, Tensor]:
        """The real values, as in `observe`."""
        self._rows(len(self.probe.groups), len(self.probe.groups), bare_shape(self.probe))
        return self.probe.fold(stages, step, data)

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
        """Zeros, and a note of the rows."""
        import torch

        del masks, removal, layers, heads
        wide = len(self.probe.layers.groups)
        self._rows(len(examples) * wide, rows)
        tail = (wide,) if self.probe.layers.labels else ()
        return torch.zeros(len(examples), self.probe.batch.columns.shape[1], *tail)

    def resample(self, examples: Tensor, ids: Tensor, *, top: int | None = None, rows: int | None = None) -> Tensor:
        """Zeros, and a note of the rows."""
        import torch

        del ids, top
        self._rows(len(examples), rows)
        return torch.zeros(len(examples), self.probe.batch.columns.shape[1])

    def zero(self, question: Zeroing) -> Zeroed:
        """Zeros of the right shapes, and a note of the rows, of which one per sequence is clean."""
        import torch

        probe = self.probe
        layers, count = probe.anatomy.layers, len(probe.groups)
        steps = probe.batch.query.shape[1]
        third = probe.feature_count if question.each == "feature" else probe.batch.width
        places = probe.widths[-1] if question.everywhere else steps
        total = len(removals(probe, question.each)[0])
        self._rows(total + count, rows_per_pass(probe, question, total), zeroing_shape(probe))
        return Zeroed(
            moved=torch.zeros(count, places, third, layers["decoder"]),
            query=torch.zeros(count, steps, dtype=torch.long),
            encoder=torch.zeros(count, probe.widths[0], third, layers["encoder"]) if len(layers) > 1 else None,
            tokens=torch.full((count, third), -1),
            mixture=torch.zeros(probe.batch.columns.shape[:2]),
            record={},
        )

    def _rows(self, total: int, rows: int | None, bare: Shape | None = None) -> None:
        probe, model = self.probe, self.probe.model
        # Where no target is wanted, nothing runs beside a row.
        shape, width = (probe.shape(), probe.row_width) if bare is None else (bare, 1)
        if rows is None:
            rows = make_rows(shape, total, free=model.free_bytes(), cpu=model.device.type == "cpu", width=width)
        self.plans.append(make_plain_plan(shape, rows, total, width=width))

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
        """Zeros of the right shape, and a note of the plan: of the first path, as zeros are accepted."""
        import torch

        probe = self.probe
        layers = len(probe.layers.groups)
        plan, _ = plan_derivatives(
            probe, reduce=reduce, paths=paths[:1], reference=reference, of=of, rank=rank, rules=rules
        )
        # One pass serves all layers where `whence.probe.differentiate` shares it among them.
        clean = (not reference or rules is not None) and not paths[0].noise
        shared = clean and plan.mode == "reverse" and len(probe.layers.streams) == 1
        self.plans += [plan] * (1 if shared else layers)
        count, columns = probe.batch.columns.shape[:2]
        tail = (layers,) if probe.layers.labels else ()
        third = probe.feature_count if reduce == "dot" else probe.batch.width
        units = (1,) if reduce in ("units", "gradient") else ()
        each = (probe.feature_count,) if paths[0].alone else ()
        there = torch.zeros(count, columns, *each, *tail) if reference else None
        values = torch.zeros(count, columns, third, *tail, *units)
        return Derivatives(values, probe.layers.labels, self.here, there, {"path": 0}, ())

    def total(self) -> Estimate:
        """The sum of what was asked; one more forward pass measures the clean input."""
        count = len(self.probe.batch.sequences)
        clean = make_plain_plan(self.probe.shape(), count, count)
        return Estimate(
            mode=next((plan.mode for plan in self.plans if plan.mode), ""),
            forwards=clean.forwards + sum(plan.forwards for plan in self.plans),
            derivatives=sum(plan.derivatives for plan in self.plans),
            rows_per_pass=max((plan.rows for plan in self.plans), default=count),
            products_per_pass=max((plan.products for plan in self.plans), default=0),
            peak_bytes=max(plan.bytes for plan in [clean, *self.plans]),
        )
