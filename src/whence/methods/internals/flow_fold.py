"""The fold of information flow: shares of the edges into the residual stream, layer by layer.

Travels by its source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whence.methods.internals.composition import at_steps, column_mean, count, identity_map, note, stack_map
from whence.methods.internals.proximity import edge_shares
from whence.probe.branches import after_norm, attention_block, attention_sum, joined, real_rows, rebuilding_gap

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def flow_fold(model: Any, state: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> None:
    """One attention module.

    Args:
        model: The nnsight model.
        state: See `whence.probe.observe.fold_stages`; ``data`` has ``compose``, ``threshold`` and ``widths``. Found
            are ``scores`` [example, column, token], ``encoder_self`` [example, query, key], ``rebuilding`` and
            ``flat`` [example].
        stage: The stage.
        values: Its values.
    """
    data, run, facts = state["data"], state["run"], stage["facts"]
    inside = facts["stack"] == "encoder"
    rows = run["query"] if data["compose"] == "direct" and not inside else None
    block = closed_block(model, state, stage, values, rows)
    if block is None:
        return
    note(state, "rebuilding", rebuilding_gap(block, None if rows is not None else real_rows(run, stage)))
    if rows is None:
        flow_on(state, stage, block)
    else:
        keys, rest = flow_shares(state, block, None)
        direct = tokens_of(state, keys, identity_map(state, "decoder", rest)).cpu()
        state["direct"] = state["direct"] + direct if "direct" in state else direct
    if facts["last"]:
        steps = state["direct"] if rows is not None else at_steps(run, state["maps"]["decoder"])
        state["found"]["scores"] = column_mean(run, steps)
        if "encoder" in state.get("maps", {}):
            state["found"]["encoder_self"] = state["maps"]["encoder"][..., : data["widths"][0]]


def flow_on(state: dict[str, Any], stage: dict[str, Any], block: dict[str, Any]) -> None:
    """Multiply the edges into all rows of a block with the map of its stack."""
    stack = stage["facts"]["stack"]
    keys, rest = flow_shares(state, block, real_rows(state["run"], stage))
    before = stack_map(state, stack, rest)
    state["maps"][stack] = tokens_of(state, keys, before) + rest[..., None] * before


def flow_shares(
    state: dict[str, Any], block: dict[str, Any], real: Bool[Tensor, "batch row"] | None
) -> tuple[list[Float[Tensor, "batch row key"]], Float[Tensor, "batch row"]]:
    """Shares of the edges into the rows of a block; real rows without any are counted."""
    keys, rest, flat = edge_shares(block, state["data"]["threshold"])
    count(state, "flat", (flat if real is None else flat & real.to(flat.device)).sum(-1))
    return keys, rest


def tokens_of(
    state: dict[str, Any], keys: list[Float[Tensor, "batch row key"]], own: Float[Tensor, "batch key token"]
) -> Float[Tensor, "batch row token"]:
    """Shares of tokens from shares of keys.

    Args:
        state: The state of the fold, which has the encoder's map.
        keys: For self attention, and where there is cross attention for that.
        own: What the positions of the rows' own stack are made of.

    Returns:
        The shares.
    """
    found = keys[0] @ own
    return found if len(keys) == 1 else found + keys[1] @ stack_map(state, "encoder", own)


def closed_block(
    model: Any,
    state: dict[str, Any],
    stage: dict[str, Any],
    values: dict[str, Tensor],
    rows: Int[Tensor, "batch row"] | None,
) -> dict[str, Any] | None:
    """The stream after the last attention module of a block of the model, as one sum of self and cross attention.

    Args:
        model: The nnsight model.
        state: The state of the fold, which keeps the self attention until the cross attention was read.
        stage: The stage.
        values: Its values.
        rows: The query positions of interest; None is all.

    Returns:
        The block, or None where a cross attention is still to come.
    """
    if stage["facts"]["kind"] == "cross_attn":
        both = joined(state.pop("waiting"), attention_sum(model, stage, values, rows))
        return after_norm(model, stage, values, both, rows)
    block = attention_block(model, stage, values, rows)
    if stage["facts"]["closes"]:
        return block
    state["waiting"] = block
    return None
