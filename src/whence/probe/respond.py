"""respond: target values when features are replaced by a reference, one row per variant.

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.rows import forward_rows, reference_rows, target_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def respond(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    embeds: list[dict[str, Any]],
    reference: dict[str, Any],
    examples: Int[Tensor, " row"],
    masks: list[Bool[Tensor, "row position"]],
    chunk: int,
) -> Float[Tensor, "row step"]:
    """Targets with some positions of the input at their reference.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        embeds: The embedding leaves, one per stream.
        reference: The reference input.
        examples: The example that each row is a variant of.
        masks: Per stream, the positions of each row to replace.
        chunk: Rows per forward pass.

    Returns:
        One value per row and step.
    """
    found = []
    for part in torch.arange(len(examples)).split(chunk):
        who = examples[part]
        edit = mask_edit(reference, who, [mask[part] for mask in masks])
        with torch.no_grad():
            out = forward_rows(model, run, who, embeds, edit)
            found.append(target_values(run, score, who, out["logits"]).cpu())
    return torch.cat(found)


def mask_edit(
    reference: dict[str, Any], examples: Int[Tensor, " row"], masks: list[Bool[Tensor, "row position"]]
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that puts the masked positions of the input at their reference."""

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        chosen = masks[leaf["stream"]].to(value.device)
        return torch.where(chosen[..., None], reference_rows(reference, leaf["stream"], examples, value), value)

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


def leaf_order(leaf: dict[str, Any]) -> int:
    """Where a leaf stands in the forward pass."""
    return leaf["order"]
