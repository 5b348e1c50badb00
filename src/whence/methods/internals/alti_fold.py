"""The fold of ALTI: shares of every attention module, composed over the layers.

Travels by its source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.methods.internals.composition import at_steps, column_mean, count, identity_map, note, stack_map
from whence.methods.internals.proximity import key_shares
from whence.probe.branches import attention_block, real_rows, rebuilding_gap

if TYPE_CHECKING:
    from torch import Tensor


def alti_fold(model: Any, state: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> None:
    """One attention module.

    Args:
        model: The nnsight model.
        state: See `whence.probe.observe.fold_stages`; ``data`` has ``norm``, ``rollout``, ``all_layers`` and
            ``widths``. Found are ``scores`` [example, column, token(, layer)], ``encoder_self``
            [example, query, key(, layer)], ``rebuilding`` and ``flat`` [example].
        stage: The stage.
        values: Its values.
    """
    data, run, facts = state["data"], state["run"], stage["facts"]
    stack = facts["stack"]
    block = attention_block(model, stage, values)
    if facts["kind"] == "attn" and not data["rollout"]:
        state.setdefault("maps", {})[stack] = identity_map(state, stack, block["total"])
    mix_in(state, stage, block, data["norm"])
    if not facts["closes"]:
        return
    whole = state["maps"][stack]
    inside = stack == "encoder"
    name = "encoder_self" if inside else "scores"
    mixed = whole[..., : data["widths"][0]] if inside else column_mean(run, at_steps(run, whole))
    kept = state.setdefault("kept", {}).setdefault(name, [])
    if not data["all_layers"]:
        kept.clear()
    kept.append(mixed.cpu())
    if facts["last"]:
        for name, layers in state["kept"].items():
            state["found"][name] = torch.stack(layers, dim=3) if data["all_layers"] else layers[0]


def mix_in(state: dict[str, Any], stage: dict[str, Any], block: dict[str, Any], norm: str) -> None:
    """Compose the shares of an attention module with the map of its stack; note its identities.

    Args:
        state: The state of the fold.
        stage: The stage.
        block: All rows of the stage's block.
        norm: The norm of the proximities.
    """
    stack = stage["facts"]["stack"]
    real = real_rows(state["run"], stage)
    keys, rest, flat = key_shares(block, norm)
    note(state, "rebuilding", rebuilding_gap(block, real))
    count(state, "flat", (flat if real is None else flat & real.to(flat.device)).sum(-1))
    before = stack_map(state, stack, block["total"])
    if stage["facts"]["kind"] == "attn":
        state["maps"][stack] = keys @ before
    else:
        state["maps"][stack] = keys @ encoder_map(state, keys) + rest[..., None] * before


def encoder_map(state: dict[str, Any], like: Tensor) -> Tensor:
    """The map that cross attention reads: the encoder's, or of its last positions alone where layers do not compose."""
    return stack_map(state, "encoder", like) if state["data"]["rollout"] else identity_map(state, "encoder", like)
