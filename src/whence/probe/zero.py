"""zero: how far the states of every layer move when nobody gets the values of some tokens (value zeroing).

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.mixing import mixed, mixture_gap, widened
from whence.probe.rows import forward_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

_TINY = 1e-12


def zero_values(
    model: Any,
    run: dict[str, Any],
    leaves: list[dict[str, Any]],
    places: list[Int[Tensor, "example place"]],
    examples: Int[Tensor, " row"],
    masks: list[Bool[Tensor, "row position"]],
    metric: str,
    chunk: int,
    advance: Callable[[int], None] | None,
) -> dict[str, list[Tensor | None]]:
    """Move the states of all layers at once, each by what the removal of some keys does to it in its own block.

    Every block gets the clean state as its input: what a block makes of a row is compared with what it makes of
    the clean text, and then replaced by that. So one row removes the same keys in all layers.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        leaves: In the order of the forward pass. Of every attention module ``role`` ``"pattern"``, ``"v"`` and
            ``"z"``, with the stream of its ``keys`` and ``heads``, those that lose the keys; and after
            every block ``"state"``, with ``restore``, whether the clean value goes on from there, and ``compare``,
            whether it is the state of the layer.
        places: Per stream, the positions whose states are compared.
        examples: The example that each row is a variant of.
        masks: Per stream, the keys that each row removes.
        metric: ``"cosine"``, ``"euclidean"`` or ``"relative"``.
        chunk: Rows per forward pass.
        advance: Told how many rows are done, or None.

    Returns:
        Per stream, ``moved`` [row, place, layer], how far the states moved, and ``mixture`` [example, place], how
        far the patterns are from mixing the values as the model does; None for a stream without such leaves.
    """
    count = run["query"].shape[0]
    parts = torch.arange(count).split(chunk)
    clean, gaps = join_clean([clean_states(model, run, leaves, part) for part in parts])
    made = []
    for part in torch.arange(len(examples)).split(chunk):
        moved: list[list[Tensor]] = [[] for _ in places]
        edit = zero_edit(clean, examples[part], [mask[part] for mask in masks], places, metric, moved)
        with torch.no_grad():
            forward_rows(model, run, examples[part], leaves, edit, answers=False)
        made.append([torch.stack(states, dim=2) if states else None for states in moved])
        if advance is not None:
            advance(len(part))
    rows = torch.arange(count)[:, None]
    return {
        "moved": [None if None in one else torch.cat(one) for one in zip(*made, strict=True)],
        "mixture": [gaps[k][rows, at] if k in gaps else None for k, at in enumerate(places)],
    }


def clean_states(
    model: Any, run: dict[str, Any], leaves: list[dict[str, Any]], examples: Int[Tensor, " row"]
) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """The states of some examples, by the key of their leaf, and per stream the worst gap of its attention modules."""
    states: dict[str, Tensor] = {}
    gaps: dict[int, Tensor] = {}
    seen: dict[str, Tensor] = {}

    def edit(leaf: dict[str, Any], value: Tensor) -> None:
        if leaf["role"] == "state":
            states[leaf["key"]] = value
        elif leaf["role"] != "z":
            seen[leaf["role"]] = value
        else:
            gap = mixture_gap(seen["pattern"], seen["v"], value).cpu()
            stream = leaf["stream"]
            gaps[stream] = torch.maximum(gaps[stream], gap) if stream in gaps else gap

    with torch.no_grad():
        forward_rows(model, run, examples, leaves, edit, answers=False)
    return states, gaps


def join_clean(
    parts: list[tuple[dict[str, Tensor], dict[int, Tensor]]],
) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """The states and gaps of all examples."""
    states = {key: torch.cat([one[key] for one, _ in parts]) for key in parts[0][0]}
    return states, {stream: torch.cat([one[stream] for _, one in parts]) for stream in parts[0][1]}


def zero_edit(
    clean: dict[str, Tensor],
    examples: Int[Tensor, " row"],
    masks: list[Bool[Tensor, "row position"]],
    places: list[Int[Tensor, "example place"]],
    metric: str,
    moved: list[list[Tensor]],
) -> Callable[[dict[str, Any], Tensor], Tensor | None]:
    """An edit that takes keys out of what attention mixes, and puts every state back after it was compared.

    Args:
        clean: The clean states, by the key of their leaf.
        examples: The example of each row.
        masks: Per stream, the keys that each row removes.
        places: Per stream, the positions that are compared.
        metric: How.
        moved: Per stream, a list that gets the distances [row, place] of each layer.

    Returns:
        The edit.
    """
    seen: dict[str, Tensor] = {}
    # Whether a row removed anything in the block at hand: only then is a difference more than rounding.
    touched = torch.zeros(len(examples), dtype=torch.bool)

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor | None:
        if leaf["role"] in ("pattern", "v"):
            seen[leaf["role"]] = value
            return None
        if leaf["role"] == "z":
            gone = masks[leaf["keys"]]
            touched.logical_or_(gone.any(1))
            keys = seen["v"] * gone.to(value)[:, :, None, None]
            lost = mixed(seen["pattern"], keys)
            chosen = torch.zeros(value.shape[2], dtype=lost.dtype, device=lost.device)
            chosen[leaf["heads"]] = 1
            return (widened(value) - lost * chosen[:, None]).to(value.dtype)
        low = clean[leaf["key"]][examples.to(value.device)]
        if leaf["compare"]:
            rows, at = torch.arange(len(examples))[:, None], places[leaf["stream"]][examples]
            far = distance(low[rows, at], value[rows, at], metric)
            moved[leaf["stream"]].append(far.cpu() * touched[:, None])
            touched.fill_(False)
        return low if leaf["restore"] else None

    return edit


def distance(
    clean: Float[Tensor, "row place unit"], other: Float[Tensor, "row place unit"], metric: str
) -> Float[Tensor, "row place"]:
    """How far states moved, in float32 or better; the cosine distance without the cancellation of ``1 - cos``."""
    clean, other = widened(clean), widened(other)
    size = clean.norm(dim=-1).clamp_min(_TINY)
    if metric == "cosine":
        directions = clean / size[..., None] - other / other.norm(dim=-1).clamp_min(_TINY)[..., None]
        return directions.square().sum(-1) / 2
    far = (clean - other).norm(dim=-1)
    return far / size if metric == "relative" else far
