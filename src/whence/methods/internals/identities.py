"""The checks that methods on attention share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from whence.core.contract import Gap

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def row_sums(missing: Float[Tensor, "batch column"], *, sinks: bool) -> Gap:
    """The check that what a step gives to the tokens sums to 1.

    Args:
        missing: How much each column lacks.
        sinks: Whether some of it may go to no token; then how much is reported, and no fault.

    Returns:
        The check.
    """
    if sinks:
        note = "the largest share that goes to an attention sink, which is no token"
        return Gap("missing_mass", missing, torch.ones_like(missing), None, note)
    return Gap("row sums", missing, torch.ones_like(missing), "single", "weights of a row against 1")


def mixture(gap: Float[Tensor, "batch column"]) -> Gap:
    """The check that the patterns are the ones that the model used.

    Args:
        gap: How far weighted values are from the model's own mixture, relative to that.

    Returns:
        The check.
    """
    note = "values weighted by the patterns, against what the model's attention gives to its output projection"
    return Gap("mixture", gap, torch.ones_like(gap), "exact", note)
