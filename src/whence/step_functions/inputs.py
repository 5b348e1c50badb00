"""What a step function sees. A plain class, because it is sent to remote places by its source."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class StepInputs:
    """The model's answer at every explained step, for every row.

    Attributes:
        logits: The distribution that predicts each step's token, float32 or better, after every
            transform of the model itself (bias, scale, soft-cap).
        target_ids: The token that stands at each step.
    """

    def __init__(self, logits: Float[Tensor, "row step vocab"], target_ids: Int[Tensor, "row step"]) -> None:
        self.logits = logits
        self.target_ids = target_ids
