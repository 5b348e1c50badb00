"""Gaussian noise at a site: the same for a sequence whether it stands alone or in a padded batch.

These functions travel to remote places by their source (see `whence.models.programs` for the rules). They draw
where the model is, since what they draw is as large as the site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.core.random import stream

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def noise_like(
    clean: Float[Tensor, "row position *unit"],
    way: dict[str, Any],
    which: int,
    features: dict[str, Tensor],
    stands: dict[str, Tensor],
) -> Float[Tensor, "row position *unit"]:
    """Noise for each row, in proportion to the root mean square of each token's clean value.

    The numbers of a row are drawn token after token in the order of the sequence, so neither padding nor the
    text after a token changes what is drawn for it.

    Args:
        clean: The clean value of each row.
        way: ``noise`` (the standard deviation), ``item`` and ``seed`` of the random numbers.
        which: The stream of tokens; each has its own numbers.
        features: ``held`` and ``noisy`` [example, position, 1 ...]: places that hold a token, and those of them
            that get noise.
        stands: The rows (see `whence.probe.path`).

    Returns:
        A tensor like ``clean``.
    """
    examples, sample = stands["examples"], stands["sample"]
    held = features["held"].flatten(1)[examples].cpu()
    flat = clean.flatten(2)
    drawn = torch.zeros(flat.shape, dtype=torch.float64)
    most = int(held.sum(1).max())
    for number in sample.unique().tolist():
        generator = stream(way["seed"], f"{way['item']} noise {which}", number)
        numbers = torch.from_numpy(generator.standard_normal((most, flat.shape[2])))
        for row in (sample == number).nonzero()[:, 0].tolist():
            drawn[row, held[row]] = numbers[: int(held[row].sum())]
    wide = torch.promote_types(flat.dtype, torch.float32)
    size = flat.to(wide).square().mean(-1, keepdim=True).sqrt()
    made = (way["noise"] * size * drawn.to(size)).to(clean).view_as(clean)
    return torch.where(features["noisy"][examples], made, torch.zeros_like(made))
