"""The fold of value norms: how long the vectors are that attention modules bring from each token.

Travels by its source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.methods.internals.composition import column_mean, note
from whence.methods.internals.proximity import key_sums, length, row_chunks
from whence.probe.branches import after_norm, attention_sum, real_rows, rebuilding_gap, with_residual

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def norms_fold(model: Any, state: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> None:
    """One attention module.

    Args:
        model: The nnsight model.
        state: See `whence.probe.observe.fold_stages`; ``data`` has ``level``, ``block`` and ``normalize``. Found are
            ``scores`` [example, column, token, layer(, head)], ``encoder_self`` [example, query, key, layer(, head)]
            and ``rebuilding`` [example].
        stage: The stage.
        values: Its values.
    """
    data, run, facts = state["data"], state["run"], stage["facts"]
    inside = facts["stack"] == "encoder"
    rows = None if inside else run["query"]
    block = attention_sum(model, stage, values, rows)
    if data["block"] != "attn":
        block = with_residual(block, values, rows)
    if data["block"] == "resln":
        block = after_norm(model, stage, values, block, rows)
    note(state, "rebuilding", rebuilding_gap(block, real_rows(run, stage) if inside else None))
    found = part_norms(block, data["level"])
    if data["normalize"]:
        # A row to which nothing is brought stays 0.
        found = found / found.sum(2, keepdim=True).clamp_min(torch.finfo(found.dtype).tiny)
    if inside:
        state.setdefault("inside", []).append(found.cpu())
    else:
        state.setdefault(facts["kind"], []).append(column_mean(run, found).cpu())
    if facts["last"]:
        kinds = [torch.stack(state[kind], dim=3) for kind in ("cross_attn", "attn") if kind in state]
        state["found"]["scores"] = torch.cat(kinds, dim=2)
        if "inside" in state:
            state["found"]["encoder_self"] = torch.stack(state["inside"], dim=3)


def part_norms(block: dict[str, Any], level: str) -> Float[Tensor, "batch row key *head"]:
    """Lengths of what each key adds to each row, through all heads or through each."""
    part = block["parts"][0]
    if level == "head":
        lengths = length(part["vectors"], "l2")
        return (part["weights"].abs() * lengths.permute(0, 2, 1)[:, :, None]).permute(0, 2, 3, 1)
    found = []
    for rows in row_chunks(part):
        sums = key_sums(part, rows)
        if part["own"] is not None:
            sums = sums + part["own"][:, rows, :, None] * block["residual"][:, rows, None]
        found.append(length(sums, "l2"))
    return torch.cat(found, dim=1)
