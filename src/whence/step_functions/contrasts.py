"""Step functions of two runs: what the main run says, compared with what is said of a contrast.

Every step has a partner: another token (the foil) in the same run, or the same step of a run on another text or
input. They travel, like `whence.step_functions.functions`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from whence.step_functions.functions import in_base, logit, logprob, probability
from whence.step_functions.inputs import StepInputs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor


def other(inputs: StepInputs) -> StepInputs:
    """The contrast as if it were the run."""
    return StepInputs(inputs.contrast.logits, inputs.contrast.target_ids)


def both_logprobs(inputs: StepInputs) -> tuple[Float[Tensor, "row step"], Float[Tensor, "row step"]]:
    """``ln p[y]`` of the token and of the foil.

    Of one and the same run from one softmax, so that the derivatives of equal tokens cancel to the last bit.
    """
    logp = inputs.logits.log_softmax(-1)
    same = inputs.contrast.logits is inputs.logits
    theirs = logp if same else inputs.contrast.logits.log_softmax(-1)
    own, foil = inputs.target_ids.unsqueeze(-1), inputs.contrast.target_ids.unsqueeze(-1)
    return logp.gather(-1, own).squeeze(-1), theirs.gather(-1, foil).squeeze(-1)


def contrast_logits(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """Logit of the foil, ``z'[y']``; unbounded, in logits."""
    return logit(other(inputs))


def contrast_prob(inputs: StepInputs, log: bool = False) -> Float[Tensor, "row step"]:
    """Probability of the foil, ``p'[y']``, in [0, 1].

    Args:
        inputs: Logits and tokens of every step.
        log: Its natural logarithm instead, in nats.
    """
    return logprob(other(inputs)) if log else probability(other(inputs))


def contrast_logits_diff(inputs: StepInputs) -> Float[Tensor, "row step"]:
    """Logit of the token less that of the foil, ``z[y] - z'[y']`` (Yin and Neubig 2022); in logits."""
    return logit(inputs) - logit(other(inputs))


def contrast_prob_diff(inputs: StepInputs, log: bool = False) -> Float[Tensor, "row step"]:
    """Probability of the token less that of the foil, ``p[y] - p'[y']`` (Yin and Neubig 2022), in [-1, 1].

    Args:
        inputs: Logits and tokens of every step.
        log: The logarithm of their ratio instead, ``ln p[y] - ln p'[y']``, in nats.
    """
    own, foil = both_logprobs(inputs)
    return own - foil if log else own.exp() - foil.exp()


def pcxmi(inputs: StepInputs, context: str = "contrast", base: float | None = None) -> Float[Tensor, "row step"]:
    """Pointwise conditional cross-mutual information: by how much a context raises the token's log-probability.

    ``ln q_ctx[y] - ln q_noctx[y']`` (Fernandes et al. 2021, 2023); positive where the context helps.

    Args:
        inputs: Logits and tokens of every step.
        context: Which run has the context: ``"contrast"`` or ``"main"``.
        base: Base of the logarithm; None is the natural one (nats), 2 gives bits.
    """
    own, foil = both_logprobs(inputs)
    gain = own - foil
    return in_base(gain if context == "main" else -gain, base)


def in_context_pvi(
    inputs: StepInputs, context: str = "contrast", base: float | None = None
) -> Float[Tensor, "row step"]:
    """Pointwise V-information of a context, ``ln q_ctx[y] - ln q_null[y]`` (Lu et al. 2023).

    The same number as `pcxmi`, under the name that it has where the context is a set of examples.

    Args:
        inputs: Logits and tokens of every step.
        context: Which run has the context: ``"contrast"`` or ``"main"``.
        base: Base of the logarithm; None is the natural one (nats), 2 gives bits.
    """
    return pcxmi(inputs, context, base)


def kl_divergence(
    inputs: StepInputs,
    direction: str = "main_to_contrast",
    top_k: int = 0,
    top_p: float = 1.0,
    min_keep: int = 1,
    base: float | None = None,
) -> Float[Tensor, "row step"]:
    """Kullback-Leibler divergence of the two next-token distributions, ``sum P ln P / Q``; at least 0, in nats.

    With `top_k` or `top_p` both are cut to the tokens that are among the top of either one, and renormalised over
    these, so that the number stays finite.

    Args:
        inputs: Logits and tokens of every step.
        direction: ``"main_to_contrast"``: P is the main run's; ``"contrast_to_main"``: P is the contrast's.
        top_k: Keep so many of the most probable tokens of each; 0 keeps all.
        top_p: Keep the most probable tokens that together have this probability; applied before `top_k`.
        min_keep: Keep at least so many.
        base: Base of the logarithm; None is the natural one (nats), 2 gives bits.
    """
    first, second = inputs.logits, inputs.contrast.logits
    if direction == "contrast_to_main":
        first, second = second, first
    if top_k or top_p < 1:
        keep = top_tokens(first, top_k, top_p, min_keep) | top_tokens(second, top_k, top_p, min_keep)
        first, second = first.masked_fill(~keep, -torch.inf), second.masked_fill(~keep, -torch.inf)
    return in_base(divergence(first.log_softmax(-1), second.log_softmax(-1)), base)


def jsd(inputs: StepInputs, sqrt: bool = False, base: float | None = None) -> Float[Tensor, "row step"]:
    """Jensen-Shannon divergence of the two next-token distributions, in [0, ln 2] nats.

    ``(KL(P, M) + KL(Q, M)) / 2`` with ``M = (P + Q) / 2``.

    Args:
        inputs: Logits and tokens of every step.
        sqrt: The Jensen-Shannon distance instead, its square root.
        base: Base of the logarithm; None is the natural one (nats), 2 gives bits.
    """
    first, second = inputs.logits.log_softmax(-1), inputs.contrast.logits.log_softmax(-1)
    # Tokens that both mask have no derivative of their own, but minus infinity would make it NaN.
    middle = torch.logaddexp(first.clamp_min(-1e30), second.clamp_min(-1e30)) - torch.log(first.new_tensor(2.0))
    found = in_base((divergence(first, middle) + divergence(second, middle)) / 2, base)
    if not sqrt:
        return found
    # Equal distributions are at the lowest point of the distance, where the square root has no derivative.
    apart = found > 0
    return torch.where(apart, torch.where(apart, found, 1.0).sqrt(), 0.0)


def divergence(first: Float[Tensor, "*step vocab"], second: Float[Tensor, "*step vocab"]) -> Float[Tensor, "*step"]:
    """``sum P ln P / Q`` of two log-distributions, with ``0 ln 0 = 0``; infinite where Q lacks what P has."""
    # A token that P masks counts nothing, whatever Q says of it.
    return (first.exp() * torch.where(first.isneginf(), 0.0, first - second)).sum(-1)


def top_tokens(
    logits: Float[Tensor, "*step vocab"], top_k: int, top_p: float, least: int
) -> Bool[Tensor, "*step vocab"]:
    """The most probable tokens of a distribution: those that together have ``top_p``, and of these ``top_k``."""
    p, order = logits.softmax(-1).sort(-1, descending=True)
    place = torch.arange(p.shape[-1], device=p.device)
    keep = p.cumsum(-1) - p < top_p if top_p < 1 else torch.ones_like(p, dtype=torch.bool)
    if top_k:
        keep = keep & (place < top_k)
    keep = keep | (place < least)
    return torch.zeros_like(keep).scatter(-1, order, keep)
