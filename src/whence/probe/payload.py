"""A batch and a step function as plain data for programs (see `whence.probe.rows`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.core.errors import UnsupportedError
from whence.models.model import Model
from whence.probe.batch import Batch
from whence.probe.noisy import noise_data
from whence.step_functions import StepFunction

if TYPE_CHECKING:
    from whence.probe.foil import Foil


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
        "foil": None,
        "beside": None,
    }


def score_run(
    model: Model, batch: Batch, functions: Sequence[StepFunction], foil: Foil | None, seed: int
) -> dict[str, Any]:
    """A batch with what step functions need beside its own logits.

    Args:
        model: The model.
        batch: The batch.
        functions: The step functions; those that need runs under dropout need the same.
        foil: What steps are compared with, where that was said.
        seed: Seed of the dropout.

    Raises:
        UnsupportedError: One pass cannot give all of it.
    """
    run = run_data(model, batch)
    needs = frozenset[str]().union(*(one.needs for one in functions))
    if "contrast" in needs and foil is not None:
        run["foil"] = {"ids": foil.ids, "logits": foil.logits}
        run["beside"] = None if foil.beside is None else dict(foil.beside)
        run["keep"] = None if run["keep"] is None else max(run["keep"], foil.keep)
    noisy = next((one for one in functions if "noisy" in one.needs), None)
    if noisy is not None:
        if run["beside"] is not None:
            raise UnsupportedError(
                f"{noisy.name} needs runs under dropout, and they cannot run beside the contrast's own. "
                "Take grad='main' in contrast, or evaluate='main'."
            )
        run["beside"] = noise_data(model, noisy, seed)
    return run


def rules_data(model: Model, function: StepFunction) -> dict[str, Any]:
    """What DeepLIFT's rules need of a model and a step function (see `whence.probe.paired`)."""
    architecture = model.architecture
    for bend in architecture.bends:
        if bend["rule"] == "norm" and bend["eps"] is None:
            raise UnsupportedError(f"deeplift: the norm {bend['path']} does not say what it adds to the mean square.")
    # The target's gradient is averaged along a straight line, where 64 points leave about 1e-6.
    points, weights = np.polynomial.legendre.leggauss(64)
    return {
        "bends": [dict(bend) for bend in architecture.bends],
        "multipliers": function.multipliers,
        "points": ((points + 1) / 2).tolist(),
        "weights": (weights / 2).tolist(),
    }


def score_data(function: StepFunction) -> dict[str, Any]:
    """A step function and its options."""
    return {"fn": function.fn, "options": dict(function.options)}
