"""Exact multipliers of step functions: what each logit's change contributes to the change of the target.

A multiplier ``m`` of ``f`` between the logits ``z`` of a run and ``z'`` of its reference satisfies
``sum_v m_v (z_v - z'_v) = f(z) - f(z')``. Travels, like `whence.step_functions.functions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from whence.step_functions.inputs import StepInputs


def logarithmic_mean(p: Float[Tensor, "..."], q: Float[Tensor, "..."], u: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """``(p - q) / (ln p - ln q)``, between the two; 0 where both are 0.

    Args:
        p: At least 0.
        q: At least 0.
        u: ``ln p - ln q``, which the caller knows better than it can be had from values that underflow.

    Returns:
        The mean.
    """
    size = u.abs()
    # Of the two forms p (1 - e^-u) / u and q (e^u - 1) / u the one whose exponential cannot overflow.
    share = torch.where(size == 0, 1.0, -torch.expm1(-size) / torch.where(size == 0, 1.0, size))
    mean = p.maximum(q) * share
    return torch.where(p.maximum(q) == 0, 0.0, mean)


def logit_multipliers(inputs: StepInputs, reference: StepInputs) -> Float[Tensor, "row step vocab"]:
    """1 for the token's own logit."""
    own = torch.zeros_like(inputs.logits)
    return own.scatter_(-1, inputs.target_ids.unsqueeze(-1), 1.0)


def logit_diff_multipliers(inputs: StepInputs, reference: StepInputs) -> Float[Tensor, "row step vocab"]:
    """1 for the token's own logit; less 1 for the foil's where it is one of the same run, else that is a constant."""
    own = logit_multipliers(inputs, reference)
    if inputs.contrast.logits is not inputs.logits:
        return own
    foil = inputs.contrast.target_ids.unsqueeze(-1)
    return own.scatter_add(-1, foil, torch.full_like(foil, -1.0, dtype=own.dtype))


def logprob_multipliers(inputs: StepInputs, reference: StepInputs) -> Float[Tensor, "row step vocab"]:
    """The token's own logit, less every logit's part in the sum of exponentials.

    ``lse(z) - lse(z') = sum_v L_v (z_v - z'_v) / sum_v L_v``, with L the logarithmic mean of the two
    probabilities: both sides follow from ``sum_v (p_v - p'_v) = 0``.
    """
    high, low = inputs.logits.log_softmax(-1), reference.logits.log_softmax(-1)
    masked = high.isneginf() | low.isneginf()
    means = logarithmic_mean(high.exp(), low.exp(), torch.where(masked, 0.0, high - low))
    return logit_multipliers(inputs, reference) - means / means.sum(-1, keepdim=True)


def probability_multipliers(inputs: StepInputs, reference: StepInputs) -> Float[Tensor, "row step vocab"]:
    """Those of the logarithm, times the slope of the exponential between the two."""
    own = inputs.target_ids.unsqueeze(-1)
    high = inputs.logits.log_softmax(-1).gather(-1, own)
    low = reference.logits.log_softmax(-1).gather(-1, own)
    return logarithmic_mean(high.exp(), low.exp(), high - low) * logprob_multipliers(inputs, reference)
