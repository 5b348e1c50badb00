"""What a question will cost, before it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from whence.core.contract import AT_INPUT, Accept, Derivatives, Path, Reduction, Rules
from whence.probe.plan import Plan
from whence.probe.probe import ModelProbe

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
        peak_bytes: Memory above the model's own.
    """

    mode: str
    forwards: int
    derivatives: int
    rows_per_pass: int
    peak_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.forwards} forward rows, {self.derivatives} derivatives ({self.mode or 'none'}), "
            f"{self.rows_per_pass} rows at once, about {self.peak_bytes / 2**20:.0f} MiB above the model"
        )


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
    def here(self) -> Tensor:
        """Zeros: nothing is measured."""
        return self.probe.here

    @property
    def feature_count(self) -> int:
        """Features of the sequence that has most."""
        return self.probe.feature_count

    def observe(self, sites: Sequence[str]) -> dict[str, Tensor]:
        """The real values: what a method does next may depend on their shapes. One forward pass."""
        count = len(self.probe.batch.sequences)
        self.plans.append(Plan("", count, 0, count, 0, 0))
        return self.probe.observe(sites)

    def respond(self, examples: Tensor, masks: Tensor, rows: int = 16) -> Tensor:
        """Zeros, and a note of the rows."""
        import torch

        self.plans.append(Plan("", min(rows, len(examples)), 0, len(examples), 0, 0))
        return torch.zeros(len(examples), self.probe.batch.columns.shape[1])

    def differentiate(
        self,
        *,
        reduce: Reduction,
        paths: Sequence[Path] = AT_INPUT,
        accept: Accept | None = None,
        reference: bool = False,
        rules: Rules | None = None,
    ) -> Derivatives:
        """Zeros of the right shape, and a note of the plan: of the first path, as zeros are accepted."""
        import torch

        probe = self.probe
        layers = len(probe.layers.groups)
        plan, _ = probe.plan(reduce=reduce, points=len(paths[0][0]), reference=reference, paired=rules is not None)
        self.plans += [plan] * (layers if reference else 1)
        count, columns = probe.batch.columns.shape[:2]
        tail = (layers,) if probe.layers.labels else ()
        third = probe.feature_count if reduce == "dot" else probe.batch.width
        units = (1,) if reduce in ("units", "gradient") else ()
        there = torch.zeros(count, columns, *tail) if reference else None
        values = torch.zeros(count, columns, third, *tail, *units)
        return Derivatives(values, probe.layers.labels, self.here, there, {"path": 0}, ())

    def total(self) -> Estimate:
        """The sum of what was asked; one more forward pass measures the clean input."""
        count = len(self.probe.batch.sequences)
        return Estimate(
            mode=next((plan.mode for plan in self.plans if plan.mode), ""),
            forwards=count + sum(plan.forwards for plan in self.plans),
            derivatives=sum(plan.derivatives for plan in self.plans),
            rows_per_pass=max((plan.rows for plan in self.plans), default=count),
            peak_bytes=max((plan.bytes for plan in self.plans), default=0),
        )
