"""The numbers that are explained or reported, on the clean input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from whence.models.model import Model
from whence.probe.batch import Batch
from whence.probe.checks import check_finite
from whence.probe.measure import measure
from whence.probe.payload import run_data, score_data
from whence.step_functions import StepFunction

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


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
