"""Variants of the input that are no replacement by a reference: tokens cut out, cut off, or exchanged.

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.rows import edited_targets, keep_value, select_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def respond_deleted(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    examples: Int[Tensor, " row"],
    masks: list[Bool[Tensor, "row position"]],
    least: list[dict[str, Any]],
    chunk: int,
    advance: Callable[[int], None] | None,
) -> Float[Tensor, "row step"]:
    """Targets with some tokens deleted, and the positions of the others numbered anew.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        examples: The example that each row is a variant of.
        masks: Per stream, the positions of each row to delete.
        least: Per stream, what is read where nothing would be left: ``id``, and ``until`` [example], the
            position up to which something has to be left.
        chunk: Rows per forward pass.
        advance: Told how many rows are done, or None.

    Returns:
        One value per row and step.
    """
    # Rows of like length together: what is run is as wide as the longest row of a pass.
    left = torch.stack([(~mask).sum(1) for mask in masks]).sum(0)
    order = left.argsort()
    found = []
    for part in order.split(chunk):
        who = examples[part]
        needed = [{"id": one["id"], "until": one["until"][who]} for one in least]
        rows = without_tokens(select_rows(run, who), [mask[part] for mask in masks], needed)
        found.append(plain_targets(model, rows, score))
        if advance is not None:
            advance(len(part))
    return torch.cat(found)[order.argsort()]


def without_tokens(
    run: dict[str, Any], masks: list[Bool[Tensor, "row position"]], least: list[dict[str, Any]]
) -> dict[str, Any]:
    """Rows whose masked tokens are gone, and as short as the longest of them; the others keep their order.

    Args:
        run: The rows, each an example of its own (see `whence.probe.rows.select_rows`).
        masks: Per stream, the positions of each row to delete.
        least: Per stream, the ``id`` that stands at the beginning where nothing is left up to position ``until``.

    Returns:
        The rows. A step is predicted from the last token before it that is left.
    """
    names = [name for name in ("input_ids", "decoder_input_ids") if name in run["inputs"]]
    inputs, query, length = dict(run["inputs"]), run["query"], run["length"]
    for number, name in enumerate(names):
        mask_name = name.replace("input_ids", "attention_mask")
        ids = inputs[name].clone()
        present = inputs[mask_name].bool() if mask_name in inputs else torch.ones_like(ids).bool()
        kept = present & ~masks[number]
        first = present.int().argmax(1)
        bare = kept.cumsum(1).gather(1, least[number]["until"][:, None])[:, 0] == 0
        kept[bare, first[bare]] = True
        ids[bare, first[bare]] = least[number]["id"]
        # A decoder alone is padded on the left.
        left = len(names) == 1
        total = kept.sum(1)
        length = int(total.max())
        chosen = slice(ids.shape[1] - length, None) if left else slice(0, length)
        if number == len(names) - 1:
            query = kept.cumsum(1).gather(1, query) - 1 + (length - total[:, None] if left else 0)
        order = (kept if left else ~kept).int().argsort(dim=1, stable=True)[:, chosen]
        inputs[name] = ids.gather(1, order)
        if mask_name in inputs:
            inputs[mask_name] = kept.gather(1, order).to(inputs[mask_name])
    if "position_ids" in inputs:
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    keep = None if run["keep"] is None else length - int(query.min())
    return {**run, "inputs": inputs, "query": query, "length": length, "keep": keep}


def respond_resampled(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    examples: Int[Tensor, " row"],
    ids: list[Int[Tensor, "row position"]],
    chunk: int,
    advance: Callable[[int], None] | None,
) -> Float[Tensor, "row step"]:
    """Targets with other tokens in the input; what is explained stays the same tokens.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        examples: The example that each row is a variant of.
        ids: Per stream, the ids that each row reads; what is padding stays padding.
        chunk: Rows per forward pass.
        advance: Told how many rows are done, or None.

    Returns:
        One value per row and step.
    """
    found = []
    names = [name for name in ("input_ids", "decoder_input_ids") if name in run["inputs"]]
    for part in torch.arange(len(examples)).split(chunk):
        rows = select_rows(run, examples[part])
        rows["inputs"].update({name: one[part] for name, one in zip(names, ids, strict=True)})
        found.append(plain_targets(model, rows, score))
        if advance is not None:
            advance(len(part))
    return torch.cat(found)


def plain_targets(model: Any, run: dict[str, Any], score: dict[str, Any]) -> Float[Tensor, "row step"]:
    """Targets of rows as they stand."""
    return edited_targets(model, run, score, torch.arange(run["query"].shape[0]), [], keep_value)


def respond_cut_off(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    leaves: list[dict[str, Any]],
    examples: Int[Tensor, " row"],
    masks: list[Bool[Tensor, "row position"]],
    of: list[Int[Tensor, "example position"]],
    heads: list[int] | None,
    chunk: int,
    advance: Callable[[int], None] | None,
) -> Float[Tensor, "row step"]:
    """Targets with some tokens out of the sight of all others (attention knockout).

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        leaves: The attention scores of the layers in question, with the ``stream`` of the queries and
            ``keys``, that of the keys.
        examples: The example that each row is a variant of.
        masks: Per stream, the positions of each row that are not to be seen.
        of: Per stream, the feature of every position.
        heads: The heads in question, or None for all.
        chunk: Rows per forward pass.
        advance: Told how many rows are done, or None.

    Returns:
        One value per row and step.
    """
    found = []
    for part in torch.arange(len(examples)).split(chunk):
        who = examples[part]
        edit = sight_edit([mask[part] for mask in masks], [one[who] for one in of], heads)
        found.append(edited_targets(model, run, score, who, leaves, edit))
        if advance is not None:
            advance(len(part))
    return torch.cat(found)


def sight_edit(
    masks: list[Bool[Tensor, "row position"]], of: list[Int[Tensor, "row position"]], heads: list[int] | None
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit of attention scores after which nobody outside a masked feature sees its tokens."""

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        stream, keys = leaf["stream"], leaf["keys"]
        blocked = masks[keys][:, None, None, :].expand(value.shape[0], 1, *value.shape[2:])
        if stream == keys:
            # A token goes on seeing itself, and its own feature.
            blocked = blocked & (of[stream][:, None, :, None] != of[keys][:, None, None, :])
        if heads is not None:
            chosen = torch.zeros(value.shape[1], dtype=torch.bool)
            chosen[heads] = True
            blocked = blocked & chosen[:, None, None]
        return value.masked_fill(blocked.to(value.device), torch.finfo(value.dtype).min)

    return edit
