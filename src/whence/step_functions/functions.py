"""Step functions of one run: pure functions from the logits of every step to one number per step.

They know nothing of models, tokenizers or devices, accept any chunk of rows and steps, and travel to
remote places by their source (so: no decorators, only torch and names of this package at module scope).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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


def crossentropy(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """Cross-entropy of the token, ``-ln p[y]``; at least 0, in nats."""
    return -logprob(inputs)


def perplexity(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """Perplexity, ``exp(-ln p[y]) = 1 / p[y]``; at least 1. Of a span, the geometric mean over its steps."""
    return crossentropy(inputs).exp()


def log_odds(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """Logarithm of the odds, ``ln p[y] / (1 - p[y]) = z[y] - logsumexp of the other logits``; in nats.

    Exact also where the probability rounds to 1. Of a span, the log-odds of all of its tokens.
    """
    return logit(inputs) - without_own(inputs).logsumexp(-1)


def margin(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """The token's logit less the highest logit of any other token; positive where it is the most probable."""
    return logit(inputs) - without_own(inputs).amax(-1)


def rank(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """Rank of the token among all, ``1 +`` the number of tokens with a higher logit; 1 is the most probable."""
    return 1 + (inputs.logits > logit(inputs).unsqueeze(-1)).sum(-1).to(inputs.logits)


def without_own(inputs: StepInputs) -> Float[Tensor, "row step vocab"]:
    """The logits with that of the token at the step masked."""
    own = torch.zeros_like(inputs.logits, dtype=torch.bool).scatter(-1, inputs.target_ids.unsqueeze(-1), True)
    return inputs.logits.masked_fill(own, -torch.inf)


def among_top(inputs: StepInputs, count: int) -> Float[Tensor, "row step"]:
    """1 where fewer than ``count`` tokens are more probable than the token at the step, else 0."""
    own = logit(inputs).unsqueeze(-1)
    return ((inputs.logits > own).sum(-1) < count).to(inputs.logits)


def top_p_size(inputs: StepInputs, top_p: float = 0.9) -> Float[Tensor, "row step"]:
    """How many of the most probable tokens together have the probability ``top_p``; at least 1.

    Args:
        inputs: Logits and tokens of every step.
        top_p: The probability, in (0, 1].
    """
    p = inputs.logits.softmax(-1).sort(-1, descending=True).values
    before = p.cumsum(-1) - p
    return (before < top_p).sum(-1).to(p)


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
    return in_base(-terms.sum(-1), base)


def in_base(nats: Float[Tensor, "row step"], base: float | None) -> Float[Tensor, "row step"]:
    """Natural logarithms as logarithms of another base; None is the natural one."""
    return nats if base is None else nats / nats.new_tensor(base).log()
