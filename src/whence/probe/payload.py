"""A batch and a step function as plain data for programs (see `whence.probe.rows`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from whence.models.model import Model
from whence.probe.batch import Batch
from whence.step_functions import StepFunction


def run_data(model: Model, batch: Batch, *, reads: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """A batch, and where the model keeps what every program needs.

    Args:
        model: The model.
        batch: The batch.
        reads: Leaves whose values are wanted. Where they are of the size of the vocabulary, the model makes
            them at all positions, else only where there may be steps.
    """
    sites = model.architecture.sites
    whole = any("vocabulary" in sites[one["key"]].axes for one in reads)
    return {
        "inputs": dict(batch.inputs),
        "length": batch.widths[-1],
        "keep": batch.keep() if "logits_to_keep" in model.accepts and not whole else None,
        "unembed": model.architecture.paths["unembed"],
        "ln_final": model.architecture.paths["ln_final"]["decoder"],
        "query": batch.query,
        "target_ids": batch.target_ids,
        "columns": batch.columns,
    }


def score_data(function: StepFunction) -> dict[str, Any]:
    """A step function and its options."""
    return {"fn": function.fn, "options": dict(function.options)}
