"""Step functions: pure functions from the logits of every step to one number per step.

They know nothing of models, tokenizers or devices, accept any chunk of rows and steps, and travel to
remote places by their source (so: no decorators, only torch and names of this package at module scope).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from whence.step_functions.inputs import StepInputs


def logit(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """Logit of the token at each step, ``z[y]``; unbounded, in logits."""
    return inputs.logits.gather(-1, inputs.target_ids.unsqueeze(-1)).squeeze(-1)


def logprob(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """Natural logarithm of the token's probability, ``ln p[y]``; at most 0, in nats."""
    return logit(inputs) - inputs.logits.logsumexp(-1)


def probability(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """Probability of the token at each step, ``p[y]``, in [0, 1]."""
    return logprob(inputs).exp()


def among_top(inputs: StepInputs, count: int) -> Float[Tensor, "row step"]:
    """1 where fewer than ``count`` tokens are more probable than the token at the step, else 0."""
    own = logit(inputs).unsqueeze(-1)
    return ((inputs.logits > own).sum(-1) < count).to(inputs.logits)


def entropy(inputs: StepInputs, base: float | None = None) -> Float[Tensor, "row step"]:
    """Entropy of the next-token distribution, ``-sum p ln p`` with ``0 ln 0 = 0``.

    Args:
        inputs: Logits and tokens of every step.
        base: Base of the logarithm; None is the natural one (nats), 2 gives bits.

    Returns:
        At least 0 and at most ``ln`` of the vocabulary size, whatever token stands at the step.
    """
    logp = inputs.logits.log_softmax(-1)
    # A masked token has logit -inf; its term is 0, but 0 * -inf would be NaN.
    terms = logp.exp() * logp.clamp_min(-1e30)
    nats = -terms.sum(-1)
    if base is None:
        return nats
    return nats / logp.new_tensor(base).log()
