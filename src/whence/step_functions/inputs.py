"""What a step function sees. Plain classes, because they are sent to remote places by their source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class ContrastInputs:
    """What the run is compared with, step by step.

    Attributes:
        logits: The distribution at the step's partner; the main run's own where another token is asked about in the
            same run.
        target_ids: The other token (the foil) of each step; the step's own token where only the input differs.
    """

    def __init__(self, logits: Float[Tensor, "row step vocab"], target_ids: Int[Tensor, "row step"]) -> None:
        self.logits = logits
        self.target_ids = target_ids


class StepInputs:
    """The model's answer at every explained step, for every row.

    Attributes:
        logits: The distribution that predicts each step's token, float32 or better, after every
            transform of the model itself (bias, scale, soft-cap).
        target_ids: The token that stands at each step.
        contrast: What the run is compared with; None unless the step function needs it.
        noisy: Logits of the same rows under dropout, one entry per pass; None unless the step function needs it.
    """

    def __init__(
        self,
        logits: Float[Tensor, "row step vocab"],
        target_ids: Int[Tensor, "row step"],
        contrast: Any = None,
        noisy: Any = None,
    ) -> None:
        self.logits = logits
        self.target_ids = target_ids
        self.contrast: ContrastInputs = contrast
        self.noisy: Float[Tensor, "pass row step vocab"] = noisy
