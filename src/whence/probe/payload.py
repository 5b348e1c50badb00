"""A batch and a step function as plain data for programs (see `whence.probe.rows`)."""

from __future__ import annotations

from typing import Any

from whence.models.model import Model
from whence.probe.batch import Batch
from whence.step_functions import StepFunction


def run_data(model: Model, batch: Batch) -> dict[str, Any]:
    """A batch, and where the model keeps what every program needs."""
    return {
        "inputs": dict(batch.inputs),
        "length": batch.widths[-1],
        "keep": batch.keep() if "logits_to_keep" in model.accepts else None,
        "unembed": model.architecture.paths["unembed"],
        "ln_final": model.architecture.paths["ln_final"]["decoder"],
        "query": batch.query,
        "target_ids": batch.target_ids,
        "columns": batch.columns,
    }


def score_data(function: StepFunction) -> dict[str, Any]:
    """A step function and its options."""
    return {"fn": function.fn, "options": dict(function.options)}
