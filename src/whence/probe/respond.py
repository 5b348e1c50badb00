"""respond: target values when features are replaced by a reference, one row per variant; see also `remove`.

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.rows import edited_targets, forward_rows, leaf_order, reference_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def respond(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    embeds: list[dict[str, Any]],
    groups: list[list[dict[str, Any]]],
    reference: dict[str, Any],
    examples: Int[Tensor, " row"],
    masks: list[Bool[Tensor, "row position"]],
    chunk: int,
    advance: Callable[[int], None] | None,
) -> Float[Tensor, "layer row step"]:
    """Targets with some positions of a site at their reference.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        embeds: The embedding leaves, one per stream.
        groups: The leaves of each layer asked for: the embeddings, or a site deeper inside.
        reference: The reference input; deeper, the reference is the site's value when the input is at it.
        examples: The example that each row is a variant of.
        masks: Per stream, the positions of each row to replace.
        chunk: Rows per forward pass.
        advance: Told how many rows are done, or None.

    Returns:
        One value per layer, row and step.
    """
    inputs = [leaf["key"] for leaf in embeds]
    deep = [leaf for group in groups for leaf in group if leaf["key"] not in inputs]
    low = capture(model, run, embeds, deep, reference, torch.arange(run["query"].shape[0])) if deep else {}
    found = []
    for group in groups:
        for part in torch.arange(len(examples)).split(chunk):
            who = examples[part]
            edit = mask_edit(reference, low, who, [mask[part] for mask in masks])
            found.append(edited_targets(model, run, score, who, group, edit))
            if advance is not None:
                advance(len(part))
    return torch.cat(found).unflatten(0, (len(groups), -1))


def mask_edit(
    reference: dict[str, Any],
    low: dict[str, Tensor],
    examples: Int[Tensor, " row"],
    masks: list[Bool[Tensor, "row position"]],
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that puts the masked positions of a site at their reference."""

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        chosen = masks[leaf["stream"]].to(value.device)
        chosen = chosen.view(*chosen.shape, *(1,) * (value.dim() - 2))
        if leaf["key"] in low:
            other = low[leaf["key"]][examples].to(value)
        else:
            other = reference_rows(reference, leaf["stream"], examples, value)
        return torch.where(chosen, other, value)

    return edit


def capture(
    model: Any,
    run: dict[str, Any],
    embeds: list[dict[str, Any]],
    leaves: list[dict[str, Any]],
    reference: dict[str, Any] | None,
    examples: Int[Tensor, " row"],
) -> dict[str, Tensor]:
    """Values of sites in the clean run, or with the whole input at its reference.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        embeds: The embedding leaves, one per stream.
        leaves: The sites to read, none of them an embedding.
        reference: The reference input, or None for the clean run.
        examples: The examples to run.

    Returns:
        For each leaf's key, its value.
    """
    inputs = {leaf["key"] for leaf in embeds}

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor | None:
        if reference is None or leaf["key"] not in inputs:
            return None
        return reference_rows(reference, leaf["stream"], examples, value)

    order = sorted([*embeds, *leaves], key=leaf_order)
    with torch.no_grad():
        out = forward_rows(model, run, examples, order, edit)
    return {leaf["key"]: value for leaf, value in zip(order, out["values"], strict=True)}
