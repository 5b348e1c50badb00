"""From the last block to a logit: the output head's rows, and what a model does before and after its head.

Travels with the folds of methods (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.models.access import resolve
from whence.models.norms import norm_form, norm_scale, wide, without_mean
from whence.probe.branches import pick

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

# Rows of the identity that go through the head at once.
_ROWS = 256


def token_directions(
    model: Any, run: dict[str, Any], like: Float[Tensor, "batch position unit"]
) -> tuple[Float[Tensor, "batch step unit"], Float[Tensor, "batch step"]]:
    """The vector whose product with the head's input is the logit of each step's token, and the head's bias.

    Where steps have a foil in the same run, less those of the foil.

    The head itself is asked, on the rows of the identity: its weights may be quantised, or in another process.

    Args:
        model: The nnsight model, in a trace.
        run: The batch (see `whence.probe.rows`).
        like: A tensor of the dtype, device and width of the head's input.

    Returns:
        Vectors and biases, in float32 or better.
    """
    head = resolve(model, run["unembed"])
    signed = signed_ids(run, like.device)
    zero = head(torch.zeros_like(like[:1, :1]))[0, 0]
    bias = torch.stack([sign * wide(zero[ids]) for sign, ids in signed]).sum(0)
    units = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
    rows = []
    for part in units.split(_ROWS):
        made = head(part[None])[0]
        rows.append(torch.stack([sign * wide(made[:, ids.flatten()]) for sign, ids in signed]).sum(0))
    return torch.cat(rows).T.unflatten(0, bias.shape) - bias[..., None], bias


def signed_ids(run: dict[str, Any], device: Any) -> list[tuple[int, Int[Tensor, "batch step"]]]:
    """The tokens whose logits are added up at each step: its own, and with a minus its foil."""
    own = [(1, run["target_ids"].to(device))]
    return own if run["foil"] is None else [*own, (-1, run["foil"]["ids"].to(device))]


def through_final_norm(
    model: Any, run: dict[str, Any], directions: Float[Tensor, "batch step unit"], like: Tensor
) -> tuple[Float[Tensor, "batch step unit"], Float[Tensor, "batch step"]]:
    """The same directions before the last norm, but for the division by the size of each position.

    Args:
        model: The nnsight model, in a trace.
        run: The batch.
        directions: From `token_directions`.
        like: A tensor of the dtype and width of the norm's input.

    Returns:
        Directions, and what the norm's offset adds to each logit.
    """
    form = norm_form(model, run["ln_final"], like)
    # The transpose: the norm removes the mean first, so its transpose does so last.
    moved = form["gain"] * directions
    return without_mean(moved, form["centred"]), directions @ form["offset"]


def final_scales(
    model: Any, run: dict[str, Any], stream: Float[Tensor, "batch position unit"], normed: Tensor
) -> tuple[Float[Tensor, "batch step"], Float[Tensor, " batch"]]:
    """What the last norm divides by at each step, and what the model multiplies with before its head.

    To be called when the norm's output was read, and before the head's was.

    Args:
        model: The nnsight model, in a trace.
        run: The batch.
        stream: The norm's input.
        normed: Its output.

    Returns:
        One over the size of each step's position, times the factor; and the factor (T5 scales the states of tied
        embeddings, others have 1).
    """
    form = norm_form(model, run["ln_final"], stream)
    read = wide(resolve(model, run["unembed"]).input)
    given = wide(normed)[:, -read.shape[1] :]
    places = run["query"] - (normed.shape[1] - read.shape[1])
    read, given = pick(read, places, 1), pick(given, places, 1)
    factor = (read * given).sum((1, 2)) / given.square().sum((1, 2))
    scale = norm_scale(form, wide(pick(stream, run["query"], 1)), wide(pick(normed, run["query"], 1)))
    return scale * factor[:, None], factor


def step_logits(run: dict[str, Any], logits: Float[Tensor, "batch position vocab"]) -> Float[Tensor, "batch step"]:
    """The number that stands for each step's token among logits of the last positions, less that of its foil."""
    places = run["query"] - (run["length"] - logits.shape[1])
    chosen = wide(pick(logits, places, 1))
    parts = [sign * chosen.gather(-1, ids[..., None]).squeeze(-1) for sign, ids in signed_ids(run, logits.device)]
    return torch.stack(parts).sum(0)
