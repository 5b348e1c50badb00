"""Step functions of several runs under dropout: how sure the model is of its own probabilities.

Gal and Ghahramani 2016. The passes are made with the same masks for every row, and the masks are constants to
derivatives. They travel, like `whence.step_functions.functions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from whence.step_functions.functions import probability
from whence.step_functions.inputs import StepInputs

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def noisy_probabilities(inputs: StepInputs) -> Float[Tensor, "pass row step"]:
    """Probability of the token at each step, in every pass."""
    return torch.stack([probability(StepInputs(one, inputs.target_ids)) for one in inputs.noisy])


def mc_dropout_prob_avg(inputs: StepInputs, n_passes: int = 5, rate: float | None = None) -> Float[Tensor, "row step"]:
    """Mean of the token's probability over passes with dropout, in [0, 1].

    Args:
        inputs: Logits and tokens of every step.
        n_passes: How many passes.
        rate: Share of the values that is dropped; None is what the model was trained with, at each of its sites.
    """
    del n_passes, rate
    return noisy_probabilities(inputs).mean(0)


def mc_dropout_prob_std(inputs: StepInputs, n_passes: int = 5, rate: float | None = None) -> Float[Tensor, "row step"]:
    """Sample standard deviation (of n - 1) of the token's probability over passes with dropout.

    Args:
        inputs: Logits and tokens of every step.
        n_passes: How many passes, at least 2.
        rate: Share of the values that is dropped; None is what the model was trained with, at each of its sites.
    """
    del n_passes, rate
    return noisy_probabilities(inputs).std(0)


def mc_dropout_zscore(inputs: StepInputs, n_passes: int = 5, rate: float | None = None) -> Float[Tensor, "row step"]:
    """How many standard deviations the probability without dropout is from the mean with it; NaN without spread.

    Args:
        inputs: Logits and tokens of every step.
        n_passes: How many passes, at least 2.
        rate: Share of the values that is dropped; None is what the model was trained with, at each of its sites.
    """
    del n_passes, rate
    noisy = noisy_probabilities(inputs)
    mean, spread = noisy.mean(0), noisy.std(0)
    # Equal numbers have a spread of rounding.
    equal = spread <= 8 * torch.finfo(mean.dtype).eps * mean
    return torch.where(equal, torch.nan, (probability(inputs) - mean) / spread)
