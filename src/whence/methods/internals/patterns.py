"""Rows of attention patterns, read where the model is; `keep_rows` and what it calls travel there by their source.

See `whence.models.programs` for the rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.mixing import mixture_gap, widened

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

_TINY = 1e-12


def keep_rows(model: Any, state: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> None:
    """Keep of one attention module's pattern what was asked for.

    A step of a fold (see `whence.probe.observe.fold_stages`). The stage's sites are ``pattern``, ``v`` and ``z``;
    its facts are ``heads``, the heads in question, and ``stack``. Of the decoder it keeps the rows of the
    columns [example, column, key, head], of the encoder all [example, query, key, head]; and as ``gap`` how far
    the worst module's pattern is from mixing the values as the model did [example, column].
    """
    run, facts, found = state["run"], stage["facts"], state["found"]
    pattern = values["pattern"]
    gap = mixture_gap(pattern, values["v"], values["z"])
    heads = widened(pattern[:, facts["heads"]])
    if facts["stack"] == "encoder":
        found[stage["name"]] = heads.permute(0, 2, 3, 1)
        present = present_places(run, 0).to(gap.device)
        worst = torch.where(present, gap, 0.0).amax(1)[:, None].expand(-1, run["columns"].shape[1])
    else:
        found[stage["name"]] = column_rows(run, heads.transpose(1, 2)).permute(0, 1, 3, 2)
        worst = column_worst(run, gap)
    # Blocks may be on several devices.
    found["gap"] = torch.maximum(found["gap"], worst.cpu()) if "gap" in found else worst.cpu()


def column_rows(run: dict[str, Any], rows: Float[Tensor, "example query ..."]) -> Float[Tensor, "example column ..."]:
    """The rows from which the steps are predicted; of a column that spans several, their mean."""
    weights = run["columns"].to(rows)
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(_TINY)
    return torch.einsum("ect,et...->ec...", weights, at_steps(run, rows))


def column_worst(run: dict[str, Any], rows: Float[Tensor, "example query"]) -> Float[Tensor, "example column"]:
    """The largest number among the steps of each column."""
    steps = at_steps(run, rows)[:, None]
    return torch.where(run["columns"].to(rows.device) > 0, steps, 0.0).amax(-1)


def at_steps(run: dict[str, Any], rows: Float[Tensor, "example query ..."]) -> Float[Tensor, "example step ..."]:
    """The rows of the positions whose logits predict the steps."""
    query: Int[Tensor, "example step"] = run["query"].to(rows.device)
    return rows[torch.arange(len(rows), device=rows.device)[:, None], query]


def present_places(run: dict[str, Any], stream: int) -> Bool[Tensor, "example position"]:
    """Which positions of a stream are no padding."""
    names = [name for name in ("input_ids", "decoder_input_ids") if name in run["inputs"]]
    mask = names[stream].replace("input_ids", "attention_mask")
    # A decoder that takes no mask is padded on the right, where nothing before it looks.
    return run["inputs"].get(mask, torch.ones_like(run["inputs"][names[stream]])).bool()
