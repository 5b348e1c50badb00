"""How near a part of a sum is to the sum, and the shares of a whole that follow from it.

``proximity(part, total) = max(0, |total| - |total - part|)`` (Ferrando et al. 2022, Ferrando and Voita 2024):
what the total loses in length when the part is taken away. Travels with the folds of the methods that use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

# Numbers held at once; more rows than fit are taken one chunk after another.
_CELLS = 1 << 24


def length(x: Float[Tensor, "*shape unit"], norm: str) -> Float[Tensor, "*shape"]:
    """The length of vectors in the norm ``"l1"`` or ``"l2"``."""
    return x.abs().sum(-1) if norm == "l1" else x.square().sum(-1).sqrt()


def proximity(
    part: Float[Tensor, "*shape unit"], total: Float[Tensor, "*shape unit"], norm: str
) -> Float[Tensor, "*shape"]:
    """What the total loses in length when the part is taken away, if it does."""
    return (length(total, norm) - length(total - part, norm)).clamp_min(0)


def row_chunks(part: dict[str, Any]) -> Iterator[Int[Tensor, " row"]]:
    """Rows of a part, as many at a time as fit."""
    batch, keys, _, units = part["vectors"].shape
    every = torch.arange(part["weights"].shape[2], device=part["weights"].device)
    yield from every.split(max(1, _CELLS // (batch * keys * units)))


def key_sums(part: dict[str, Any], rows: Int[Tensor, " row"]) -> Float[Tensor, "batch row key unit"]:
    """What each key adds to some rows, summed over heads."""
    return torch.einsum("bhrk,bkhu->brku", part["weights"][:, :, rows], part["vectors"])


def key_shares(
    block: dict[str, Any], norm: str
) -> tuple[Float[Tensor, "batch row key"], Float[Tensor, "batch row"], Bool[Tensor, "batch row"]]:
    """The shares of the keys, all heads together, and of the residual, in each row of a block (ALTI).

    Where keys are of the rows' own stream, the residual belongs to the row's own key.

    Args:
        block: A block of one part (see `whence.probe.branches`).
        norm: The norm that lengths are taken in.

    Returns:
        Shares of keys and of the residual, which sum to one, and which rows were flat: nothing is near their
        total, so that they keep themselves.
    """
    part = block["parts"][0]
    seen = part["weights"].abs().sum(1) > 0
    near = []
    for rows in row_chunks(part):
        total, parts = block["total"][:, rows, None], key_sums(part, rows)
        if part["own"] is not None:
            parts = parts + part["own"][:, rows, :, None] * block["residual"][:, rows, None]
        near.append(proximity(parts, total, norm))
    keys = torch.cat(near, dim=1)
    if part["own"] is not None:
        keys = keys * (seen | part["own"])
        rest = torch.zeros_like(keys[..., 0])
    else:
        keys = keys * seen
        rest = proximity(block["residual"], block["total"], norm)
    whole = keys.sum(-1) + rest
    flat = whole <= 0
    whole = whole.masked_fill(flat, 1)
    keys, rest = keys / whole[..., None], rest / whole
    if part["own"] is not None:
        return torch.where(flat[..., None], part["own"].to(keys), keys), rest, flat
    return keys, torch.where(flat, 1, rest), flat


def edge_shares(
    block: dict[str, Any], threshold: float
) -> tuple[list[Float[Tensor, "batch row key"]], Float[Tensor, "batch row"], Bool[Tensor, "batch row"]]:
    """The shares of the edges into each row of a block, one edge per head and key and one for the residual.

    Args:
        block: A block (see `whence.probe.branches`).
        threshold: Edges with a smaller share are dropped, and the others share the whole among them.

    Returns:
        For each part, the shares of its keys, summed over heads; the shares of the residual; flat rows, as in
        `key_shares`.
    """
    rest = proximity(block["residual"], block["total"], "l1")
    edges = [_edges(block, part) for part in block["parts"]]
    rest, edges, flat = _divided(rest, edges)
    if threshold:
        rest, edges, flat = _divided(rest * (rest >= threshold), [edge * (edge >= threshold) for edge in edges])
    return [edge.sum(1) for edge in edges], torch.where(flat, 1, rest), flat


def _divided(
    rest: Float[Tensor, "batch row"], edges: list[Float[Tensor, "batch head row key"]]
) -> tuple[Float[Tensor, "batch row"], list[Float[Tensor, "batch head row key"]], Bool[Tensor, "batch row"]]:
    """Edges divided by their sum, and which rows have none."""
    whole = rest + sum(edge.sum((1, 3)) for edge in edges)
    flat = whole <= 0
    whole = whole.masked_fill(flat, 1)
    return rest / whole, [edge / whole[:, None, :, None] for edge in edges], flat


def _edges(block: dict[str, Any], part: dict[str, Any]) -> Float[Tensor, "batch head row key"]:
    """Proximity of what each head brings from each key."""
    weights, vectors = part["weights"], part["vectors"]
    near = []
    for rows in row_chunks(part):
        total = block["total"][:, rows, None]
        heads = [
            proximity(weights[:, head, rows, :, None] * vectors[:, None, :, head], total, "l1")
            for head in range(weights.shape[1])
        ]
        near.append(torch.stack(heads, dim=1))
    # What nothing comes from is no edge, however sums were rounded.
    return torch.cat(near, dim=2) * (weights != 0)
