"""How shares of single layers compose to shares of the input, over the blocks of a model.

A map [batch, position, token] says for every position of a stack which share of it each token of the input has.
Before the first block it is the identity; a block with shares C makes C M of it, and cross attention brings in the
encoder's map (Ferrando et al. 2022, ALTI+). Travels with the folds of the methods that use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.branches import pick

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def stack_map(state: dict[str, Any], stack: str, like: Tensor) -> Float[Tensor, "batch position token"]:
    """The map of a stack as it is by now; at first, every position is its own token."""
    maps = state.setdefault("maps", {})
    if stack not in maps:
        maps[stack] = identity_map(state, stack, like)
    # Layers of one model may be on several devices.
    return maps[stack].to(like.device)


def identity_map(state: dict[str, Any], stack: str, like: Tensor) -> Float[Tensor, "batch position token"]:
    """Every position of a stack is its own token; the tokens of the last stack come last."""
    widths = state["data"]["widths"]
    width = widths[0] if stack == "encoder" else widths[-1]
    start = 0 if stack == "encoder" else sum(widths[:-1])
    square = torch.eye(sum(widths), dtype=like.dtype, device=like.device)[start : start + width]
    return square.expand(len(state["examples"]), -1, -1)


def at_steps(run: dict[str, Any], values: Float[Tensor, "batch position ..."]) -> Float[Tensor, "batch step ..."]:
    """The rows of positions whose logits predict the steps."""
    return pick(values, run["query"], 1)


def column_mean(run: dict[str, Any], values: Float[Tensor, "batch step ..."]) -> Float[Tensor, "batch column ..."]:
    """The mean over the steps of each column."""
    return torch.einsum("bct,bt...->bc...", mean_weights(run["columns"]).to(values), values)


def mean_weights(columns: Float[Tensor, "batch column step"]) -> Float[Tensor, "batch column step"]:
    """Weights of the steps in the mean of each column; zero where an example has no such column."""
    return columns / columns.sum(-1, keepdim=True).clamp_min(torch.finfo(columns.dtype).tiny)


def note(state: dict[str, Any], name: str, values: Float[Tensor, " batch"]) -> None:
    """Keep the largest value of every example."""
    found, values = state["found"], values.cpu()
    found[name] = torch.maximum(found[name], values) if name in found else values


def count(state: dict[str, Any], name: str, values: Int[Tensor, " batch"]) -> None:
    """Keep the sum of every example."""
    state["found"][name] = state["found"].get(name, 0) + values.cpu()
