"""Where a site is put: its clean value, its reference, and the points between; and what is one of both.

These functions travel to remote places by their source (see `whence.models.programs` for the rules). The
``state`` they share: ``embeds`` (the embedding leaves), ``reference`` (see `whence.probe.rows`, or None),
``ends`` (values of deeper sites in the clean run and in the reference run), ``features`` (see
`whence.probe.differentiate`) and ``counts``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.rows import reference_rows

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


def point_edit(
    state: dict[str, Any], examples: Int[Tensor, " row"], alphas: Float[Tensor, " row"]
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that puts sites at a point of their path, as constants."""

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        clean, low = span_ends(state, leaf, examples, value)
        return at_point(clean, low, alphas)

    return edit
