"""What attention makes of its pattern: values, weighted and added up.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_TINY = 1e-12


def widened(value: Tensor) -> Tensor:
    """A tensor in float32 or better."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def mixed(
    pattern: Float[Tensor, "row head query key"], values: Float[Tensor, "row key kv_head unit"]
) -> Float[Tensor, "row query head unit"]:
    """The values of all keys, added up with the weights of an attention pattern, in float32 or better.

    Args:
        pattern: The weights.
        values: The values; a group of heads may share those of one.

    Returns:
        What each head hands to the output projection.
    """
    shared = pattern.shape[1] // values.shape[2]
    own = widened(values).transpose(1, 2).repeat_interleave(shared, dim=1)
    return torch.matmul(widened(pattern), own).transpose(1, 2)


def mixture_gap(
    pattern: Float[Tensor, "row head query key"],
    values: Float[Tensor, "row key kv_head unit"],
    z: Float[Tensor, "row query head unit"],
) -> Float[Tensor, "row query"]:
    """How far the weighted values are from what the model hands to its output projection, relative to that.

    It proves that a pattern is the one that the model used: a fused implementation keeps none, and it is
    recomputed.
    """
    found = widened(z)
    gap = (mixed(pattern, values) - found).flatten(2).norm(dim=2)
    return gap / found.flatten(2).norm(dim=2).clamp_min(_TINY)
