"""The identities of methods that take the residual stream apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from whence.core.contract import Gap, Probe

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

# Many families compute norms in float32 even where the model is float64.
_NORMS_IN_FLOAT32 = 1e-5


def exactness(values: Tensor) -> float | Literal["exact"]:
    """The tolerance of an identity that goes through norms, for numbers in the dtype that it was computed in."""
    import torch

    return _NORMS_IN_FLOAT32 if values.dtype == torch.float64 else "exact"


def rebuilding(probe: Probe, share: Float[Tensor, " batch"]) -> Gap:
    """The parts add up to what the model computed; one number for all columns of an example."""
    gap = share[:, None].expand(probe.columns.shape[:2])
    note = "sum of the parts against the stream itself"
    return Gap("rebuilding", gap, gap.new_ones(gap.shape), exactness(share), note)


def row_sums(sums: Float[Tensor, "batch column *layer"]) -> Gap:
    """Shares of all tokens sum to one, in every layer."""
    gap = (sums - 1).abs().flatten(2).amax(-1) if sums.dim() > 2 else (sums - 1).abs()
    return Gap("row sums", gap, gap.new_ones(gap.shape), 1e-4, "shares of all tokens sum to 1")


def flat_rows(probe: Probe, found: dict[str, Any]) -> Gap:
    """How many rows had nothing near their total."""
    gap = found["flat"].float()[:, None].expand(probe.columns.shape[:2])
    return Gap("flat-rows", gap, gap.new_ones(gap.shape), None, "rows near which no part lies; they keep themselves")
