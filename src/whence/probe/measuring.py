"""The numbers that are explained or reported, on the clean input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whence.models.model import Model
from whence.probe.batch import Batch
from whence.probe.checks import check_finite
from whence.probe.foil import Foil
from whence.probe.measure import measure
from whence.probe.payload import score_data, score_run
from whence.step_functions import StepFunction

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def measure_batch(
    model: Model, batch: Batch, functions: Sequence[StepFunction], foil: Foil | None = None, seed: int = 0
) -> list[Float[Tensor, "example step"]]:
    """Step functions of the clean input: all from one pass, but for those that need passes under dropout.

    Args:
        model: The model.
        batch: The sequences.
        functions: The step functions.
        foil: What steps are compared with, where that was said.
        seed: Seed of the dropout.

    Returns:
        One tensor per step function; where none is asked for, nothing is run. NaN where a number that cannot be a
        target is not defined. A step that has no partner is compared with itself.

    Raises:
        NonFiniteScore: A value is NaN or infinite.
        ModelError: ... and the reason is that the model's weights are.
    """
    import torch

    found: list[Tensor] = [torch.empty(0)] * len(functions)
    for members in _passes(functions):
        asked = [functions[k] for k in members]
        run = score_run(model, batch, asked, foil, seed)
        values = model.run(measure, run=run, scores=[score_data(one) for one in asked], count=len(batch.sequences))
        for place, function, steps in zip(members, asked, values, strict=True):
            found[place] = check_finite(model, batch, steps, function.name) if function.attributable else steps
    return found


def _passes(functions: Sequence[StepFunction]) -> list[list[int]]:
    """Which step functions share a pass: those that need the same dropout, and all that need none."""
    shared: dict[Any, list[int]] = {}
    for place, function in enumerate(functions):
        options = function.default_options
        noise = (options.get("n_passes"), options.get("rate")) if "noisy" in function.needs else None
        shared.setdefault(noise, []).append(place)
    return list(shared.values())


def sum_columns(
    columns: Float[Tensor, "row column step"], steps: Float[Tensor, "row step"]
) -> Float[Tensor, "row column"]:
    """The sum of the steps that each column spans."""
    import einops

    return einops.einsum(columns, steps.to(columns), "row column step, row step -> row column")
