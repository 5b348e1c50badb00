"""Mixing matrices multiplied over layers, through one stack or two.

`roll_pattern` and what it calls travel to where the model is by their source (see `whence.models.programs` for the
rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.methods.internals.patterns import column_rows, present_places
from whence.probe.mixing import widened

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

_TINY = 1e-12


def roll_pattern(model: Any, state: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> None:
    """Multiply one block's attention onto that of the blocks below it.

    A step of a fold (see `whence.probe.observe.fold_stages`). The stage's sites are ``own``, the pattern of
    self attention, and ``cross``, where there is a source; its facts are ``stream``, ``encoder`` (is it that
    stack) and ``keep``, the name under which to keep what comes out, or None. Data are ``residual`` and
    ``cross``, the weights of the residual stream and of cross attention, and ``heads`` (how heads join). It keeps
    of the decoder the rows of the columns [example, column, token], of the encoder all [example, query, key].
    """
    run, facts, data = state["run"], stage["facts"], state["data"]
    here = present_places(run, facts["stream"])
    own = joined_heads(values["own"], here, here, data["heads"])
    own = (1 - data["residual"]) * own + data["residual"] * torch.eye(own.shape[-1], dtype=own.dtype, device=own.device)
    if facts["encoder"]:
        rolled = state["encoder"] = composed(own, state.get("encoder"))
    elif "cross" in values:
        cross = joined_heads(values["cross"], here, present_places(run, 0), data["heads"])
        own, cross = (1 - data["cross"]) * own, data["cross"] * cross
        rolled = state["decoder"] = composed(own, state.get("decoder"), torch.matmul(cross, state["encoder"].to(cross)))
    else:
        rolled = state["decoder"] = composed(own, state.get("decoder"))
    if facts["keep"] is not None:
        state["found"][facts["keep"]] = rolled if facts["encoder"] else column_rows(run, rolled)


def joined_heads(
    pattern: Float[Tensor, "example head query key"],
    queries: Bool[Tensor, "example query"],
    keys: Bool[Tensor, "example key"],
    how: str,
) -> Float[Tensor, "example query key"]:
    """One pattern for all heads, with nothing from or to padding.

    Args:
        pattern: The weights of each head.
        queries: Which queries are no padding.
        keys: Which keys are no padding.
        how: ``"mean"``, ``"max"`` or ``"min"``; the rows of the last two are divided by their sum.
    """
    if how == "mean":
        joined = widened(pattern).mean(1)
    else:
        joined = widened(pattern.amax(1) if how == "max" else pattern.amin(1))
    seen = (queries[:, :, None] & keys[:, None, :]).to(joined.device)
    joined = torch.where(seen, joined, 0.0)
    return joined if how == "mean" else joined / joined.sum(-1, keepdim=True).clamp_min(_TINY)


def composed(
    own: Float[Tensor, "*batch query key"],
    below: Float[Tensor, "*batch key token"] | None,
    source: Float[Tensor, "*batch query source"] | None = None,
) -> Float[Tensor, "*batch query token"]:
    """What the positions of a layer are made of: own positions of the layer below, and of it in turn the tokens.

    Args:
        own: Shares of the positions of the layer below.
        below: What those are made of; None at the first layer, whose positions are the tokens.
        source: Shares that come straight from the tokens of the source, which stand first on the token axis.

    Returns:
        Shares of the tokens: of the source, if there is one, and of the stack's own.
    """
    if below is None:
        below = torch.eye(own.shape[-1], dtype=own.dtype, device=own.device).expand_as(own)
        if source is not None:
            below = torch.cat([torch.zeros_like(source), below], dim=-1)
    # Blocks may be on several devices.
    above = torch.matmul(own, below.to(own))
    if source is not None:
        above[..., : source.shape[-1]] += source
    return above
