"""The largest eigenvalues of symmetric matrices that can only be multiplied with vectors (Lanczos 1950).

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.core.random import stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

# Eigenvectors are good when this share of the largest eigenvalue is left over.
ENOUGH = 1e-7


def top_eigenpairs(
    product: Callable[[Tensor], Tensor], shape: tuple[int, int], rank: int, dtype: Any, device: Any
) -> dict[str, Tensor]:
    """Top eigenpairs of one positive semidefinite matrix per case, all cases at once.

    Krylov vectors are kept and orthogonalised against all before them. Where a Krylov space is exhausted, it is
    continued from a fresh direction, so that any rank up to the dimension can be asked for.

    Args:
        product: From one vector per case to its products with the matrices [case, unit].
        shape: Cases and dimension.
        rank: How many pairs.
        dtype: Floating-point type to compute in.
        device: Where.

    Returns:
        ``values`` [case, rank], descending; ``vectors`` [case, rank, unit]; ``residual`` [case], the largest
        ``||A u - lambda u||`` of a case.
    """
    units = shape[1]
    # Far more than it takes; what is not found by then shows in the residual.
    most = min(units, 10 * rank + 100)
    basis = [fresh([], shape, 0, dtype, device)]
    diagonal: list[Float[Tensor, " case"]] = []
    beside: list[Float[Tensor, " case"]] = []
    tiny = torch.finfo(dtype).tiny
    while True:
        # What is not in the space yet comes out of the product with its newest vector.
        rest = product(basis[-1])
        diagonal.append((rest * basis[-1]).sum(-1))
        rest = orthogonal(rest, basis)
        length = rest.norm(dim=-1)
        values, turned = torch.linalg.eigh(tridiagonal(diagonal, beside))
        top = min(rank, len(basis))
        left = (length.cpu()[:, None] * turned[:, -1, -top:].abs()).amax(-1)
        done = bool((left <= ENOUGH * values[:, -1].abs()).all()) and len(basis) >= min(2 * rank + 4, units)
        if done or len(basis) == most:
            break
        new = fresh(basis, shape, len(basis), dtype, device)
        largest = values.abs().amax(-1).to(length).clamp_min(tiny)
        used_up = length <= 10 * torch.finfo(dtype).eps * largest
        beside.append(torch.where(used_up, 0.0, length))
        basis.append(torch.where(used_up[:, None], new, rest / length.clamp_min(tiny)[:, None]))
    space = torch.stack(basis, dim=1)
    values, turned = values[:, -rank:].flip(-1).to(space), turned[:, :, -rank:].flip(-1).to(space)
    vectors = torch.einsum("cjr,cju->cru", turned, space)
    missed = [
        (product(vectors[:, k]) - values[:, k, None] * vectors[:, k]).norm(dim=-1) for k in range(vectors.shape[1])
    ]
    return {"values": values, "vectors": vectors, "residual": torch.stack(missed).amax(0)}


def tridiagonal(diagonal: list[Tensor], beside: list[Tensor]) -> Float[Tensor, "case krylov krylov"]:
    """What the matrices are in the Krylov basis, on the CPU in float64: they are small."""
    made = torch.diag_embed(torch.stack(diagonal, dim=-1).double().cpu())
    if beside:
        off = torch.stack(beside, dim=-1).double().cpu()
        made = made + torch.diag_embed(off, offset=1) + torch.diag_embed(off, offset=-1)
    return made


def orthogonal(vector: Float[Tensor, "case unit"], basis: list[Float[Tensor, "case unit"]]) -> Tensor:
    """What is left of vectors beside a basis; twice is enough (Parlett 1980)."""
    if basis:
        space = torch.stack(basis, dim=1)
        for _ in range(2):
            vector = vector - torch.einsum("cju,cj->cu", space, torch.einsum("cju,cu->cj", space, vector))
    return vector


def fresh(basis: list[Tensor], shape: tuple[int, int], number: int, dtype: Any, device: Any) -> Tensor:
    """A unit vector orthogonal to a basis; the same direction on every machine."""
    drawn = torch.from_numpy(stream(0, "lanczos", number).standard_normal(shape[1]))
    vector = orthogonal(drawn.to(device, dtype).expand(shape), basis)
    return vector / vector.norm(dim=-1, keepdim=True)
