"""Where a site is put: its clean value, its reference, and the points between; and what is one of both.

These functions travel to remote places by their source (see `whence.models.programs` for the rules). The
``state`` they share: ``embeds`` (the embedding leaves), ``reference`` (see `whence.probe.rows`, or None),
``ends`` (values of deeper sites in the clean run and in the reference run), ``features`` (see
`whence.probe.differentiate`) and ``counts``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.rows import column_values, forward_rows, reference_rows, target_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor


def advance(question: dict[str, Any], units: int) -> None:
    """Report progress, where someone listens (a place far away cannot call back)."""
    if question["advance"] is not None:
        question["advance"](units)


def is_input(leaf: dict[str, Any], embeds: list[dict[str, Any]]) -> bool:
    """Whether a leaf is one of the input embeddings."""
    return leaf["key"] in [embed["key"] for embed in embeds]


def span_ends(
    state: dict[str, Any], leaf: dict[str, Any], examples: Int[Tensor, " row"], value: Tensor
) -> tuple[Tensor, Tensor]:
    """The clean value of a leaf and its reference, for each row, as [row, position, unit]."""
    if state["reference"] is None:
        clean = value.detach()
        return clean, torch.zeros_like(clean)
    if is_input(leaf, state["embeds"]):
        clean = value.detach()
        return clean, reference_rows(state["reference"], leaf["stream"], examples, clean)
    clean, low = (state["ends"][end][leaf["key"]][examples] for end in ("clean", "reference"))
    return clean.to(value), low.to(value)


def at_point(clean: Tensor, low: Tensor, alpha: Tensor) -> Tensor:
    """The point of the path; exactly the clean value at alpha = 1."""
    shape = (-1,) + (1,) * (clean.dim() - 1)
    alpha = alpha.to(clean).view(shape)
    return torch.where(alpha == 1, clean, low + alpha * (clean - low))


def at_points(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    examples: Int[Tensor, " row"],
    alphas: Float[Tensor, " row"],
    rows: int,
    shifts: Float[Tensor, "row token"] | None = None,
) -> Float[Tensor, "row column"]:
    """Targets with a site at points of its path, and tokens a little beside it.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        state: Shared state (see `whence.probe.path`).
        group: The leaves of the layer.
        examples: The example of each row.
        alphas: The point of each row.
        rows: Rows per pass.
        shifts: How far each token is moved along its displacement, or None.

    Returns:
        Every column of every row, on the CPU.
    """
    found = []
    for part in torch.arange(len(examples)).split(rows):
        who = examples[part]
        edit = shifted_edit(state, who, alphas[part], None if shifts is None else shifts[part])
        with torch.no_grad():
            out = forward_rows(model, run, who, group, edit)
            found.append(column_values(run, who, target_values(run, score, who, out["logits"])).cpu())
    state["counts"]["rows"] += len(examples)
    return torch.cat(found)


def shifted_edit(
    state: dict[str, Any],
    examples: Int[Tensor, " row"],
    alphas: Float[Tensor, " row"],
    shifts: Float[Tensor, "row token"] | None,
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that puts sites at a point of their path, and tokens a little beside it."""
    offsets = state["features"]["offsets"]

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        clean, low = span_ends(state, leaf, examples, value)
        point = at_point(clean, low, alphas)
        if shifts is None:
            return point
        offset = offsets[leaf["stream"]]
        amount = shifts[:, offset : offset + clean.shape[1]].to(clean)
        return point + amount.view(*amount.shape, *(1,) * (clean.dim() - 2)) * (clean - low)

    return edit
