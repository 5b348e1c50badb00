"""Completeness: the scores of a step sum to the difference that they share out.

`completeness` travels to where the model runs, by its source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from whence.core.contract import Derivatives

_TINY = 1e-12
_ENOUGH = 2e-2


def completeness(
    shares: Float[Tensor, "*case token"], here: Float[Tensor, "*case"], there: Float[Tensor, "*case"]
) -> tuple[Float[Tensor, "*case"], Float[Tensor, "*case"]]:
    """How far shares are from summing to ``f(x) - f(baseline)``.

    Args:
        shares: The share of every token.
        here: f(x).
        there: f(baseline).

    Returns:
        The gap, and what it is compared with: the largest of ``|f(x)|``, ``|f(baseline)|`` and the sum of
        the absolute shares.
    """
    gap = (shares.sum(-1) - (here - there)).abs()
    scale = here.abs().maximum(there.abs()).maximum(shares.abs().sum(-1)).clamp_min(_TINY)
    return gap, scale


def complete_enough(
    shares: Float[Tensor, "*case token"], here: Float[Tensor, "*case"], there: Float[Tensor, "*case"]
) -> bool:
    """Whether completeness holds to 2% everywhere."""
    gap, scale = completeness(shares, here, there)
    return bool((gap <= _ENOUGH * scale).all())


def shares_gap(
    found: Derivatives, *, units: bool = False, slack: Tensor | None = None
) -> tuple[Float[Tensor, "batch column"], Float[Tensor, "batch column"]]:
    """How far derivatives that are shares are from completeness, in the layer where it is worst.

    Args:
        found: The derivatives, of a question with a reference.
        units: Whether they still have an axis of units.
        slack: How much of each gap does not count, in the form of ``there``.

    Returns:
        The gap, and what it is compared with.
    """
    assert found.there is not None
    shares = found.values.sum(-1) if units else found.values
    here = found.here[..., None].expand_as(found.there) if found.layers else found.here
    gap, scale = completeness(shares.movedim(2, -1), here, found.there)
    if slack is not None:
        gap = (gap - slack.to(gap)).clamp_min(0)
    if found.layers:
        worst = (gap / scale).argmax(-1, keepdim=True)
        return gap.gather(-1, worst).squeeze(-1), scale.gather(-1, worst).squeeze(-1)
    return gap, scale
