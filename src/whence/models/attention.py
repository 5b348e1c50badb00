"""Queries, keys, values, scores and pattern of attention modules, at the one call that computes attention.

Queries, keys and values are the call's arguments. Scores and pattern exist only inside it (or nowhere, in a
fused implementation), so they are recomputed from its arguments as the model's own function does, and writing
them replaces what the call returns. Travels with `whence.models.access`; the same rules hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.core.errors import UnsupportedError
from whence.models.operations import operation, resolve

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def read_attention(model: Any, spec: dict[str, Any]) -> Float[Tensor, "batch position head unit"]:
    """Read one part of an attention call: ``q``, ``k``, ``v``, ``scores`` or ``pattern``."""
    module = resolve(model, spec["path"])._module
    chosen, part = _chosen(module, spec), spec["part"]
    op = operation(model, chosen)
    if chosen["arguments"] == "line":
        value = op.output
        return value * chosen["factor"] if chosen.get("factor") is not None else value
    args, kwargs = op.inputs
    if part in ("q", "k", "v"):
        return args[_start(chosen) + ("q", "k", "v").index(part)].transpose(1, 2)
    scores = _scores(module, chosen, args, kwargs)
    return scores if part == "scores" else _pattern(module, chosen, args, kwargs, scores)


def write_attention(model: Any, spec: dict[str, Any], value: Float[Tensor, "batch position head unit"]) -> None:
    """Replace one part of an attention call, and let what follows from it follow."""
    module = resolve(model, spec["path"])._module
    chosen, part = _chosen(module, spec), spec["part"]
    op = operation(model, chosen)
    if chosen["arguments"] == "line":
        op.output = value / chosen["factor"] if chosen.get("factor") is not None else value
        return
    args, kwargs = op.inputs
    start = _start(chosen)
    if part in ("q", "k", "v"):
        place = start + ("q", "k", "v").index(part)
        op.inputs = ((*args[:place], value.transpose(1, 2), *args[place + 1 :]), kwargs)
        return
    pattern = _pattern(module, chosen, args, kwargs, value) if part == "scores" else value
    mixed = torch.matmul(pattern, per_query_head(args[start + 2], pattern.shape[1]))
    if chosen["arguments"] == "torch":
        op.output = mixed
    elif chosen["arguments"] == "plain":
        op.output = (mixed, pattern)
    else:
        op.output = (mixed.transpose(1, 2).contiguous(), pattern)


def score_facts(model: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """How an attention call makes its scores of queries and keys.

    Args:
        model: The nnsight model.
        spec: Of the site ``pattern``, where everything is had from the call.

    Returns:
        ``scale`` of the products, ``cap`` (their soft cap, or None), and ``sinks``: whether attention that goes
        to no key keeps a pattern from adding up to 1.
    """
    module = resolve(model, spec["path"])._module
    chosen = _chosen(module, spec)
    args, kwargs = operation(model, chosen).inputs
    scale = _scale(module, chosen, args, kwargs)
    return {"scale": scale, "cap": kwargs.get("softcap"), "sinks": kwargs.get("s_aux") is not None}


def _implementation(module: Any) -> str:
    return getattr(getattr(module, "config", None), "_attn_implementation", None) or "eager"


def _chosen(module: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """The description that fits the attention implementation the model runs with."""
    implementation = _implementation(module)
    if spec["part"] in ("scores", "pattern") and implementation not in ("eager", "sdpa"):
        raise UnsupportedError(
            f"{spec['site']}: attention weights cannot be had from the {implementation!r} implementation; "
            f'load the model with attn_implementation="eager".'
        )
    if implementation == "sdpa" and "sdpa" in spec:
        return {**spec, **spec["sdpa"]}
    return spec


def _start(spec: dict[str, Any]) -> int:
    """Where the query is among the positional arguments."""
    return 1 if spec["arguments"] == "interface" else 0


def _mask(spec: dict[str, Any], args: tuple, kwargs: dict) -> Any:
    if spec["arguments"] == "torch":
        return kwargs.get("attn_mask")
    place = _start(spec) + 3
    return args[place] if len(args) > place else kwargs.get("attention_mask")


def _scores(module: Any, spec: dict[str, Any], args: tuple, kwargs: dict) -> Float[Tensor, "batch head query key"]:
    query, key = args[_start(spec)], args[_start(spec) + 1]
    key = per_query_head(key, query.shape[1])
    if spec["arguments"] == "plain":
        # GPT-J and GPT-Neo compute in float32 whatever the model's dtype.
        query, key = query.to(torch.float32), key.to(torch.float32)
    scores = torch.matmul(query, key.transpose(-1, -2)) * _scale(module, spec, args, kwargs)
    if kwargs.get("softcap") is not None:
        scores = torch.tanh(scores / kwargs["softcap"]) * kwargs["softcap"]
    if kwargs.get("position_bias") is not None:
        scores = scores + kwargs["position_bias"]
    return scores


def _scale(module: Any, spec: dict[str, Any], args: tuple, kwargs: dict) -> float:
    if spec["arguments"] == "plain":
        return 1 / float(getattr(module, spec["divisor"])) if spec.get("divisor") else 1.0
    return kwargs.get("scaling") or kwargs.get("scale") or args[_start(spec)].shape[-1] ** -0.5


def _pattern(
    module: Any,
    spec: dict[str, Any],
    args: tuple,
    kwargs: dict,
    scores: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    dtype = args[_start(spec) + 2].dtype
    scores = _masked(module, spec, args, kwargs, scores)
    sinks = kwargs.get("s_aux")
    if sinks is not None:
        column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], -1)
        joined = torch.cat([scores, column], dim=-1)
        joined = joined - joined.max(dim=-1, keepdim=True).values
        return torch.softmax(joined, dim=-1, dtype=joined.dtype)[..., :-1].to(dtype)
    if _implementation(module) == "eager":
        wide = torch.float32 if spec["softmax"] == "float32" else scores.dtype
        return torch.softmax(scores, dim=-1, dtype=wide).to(dtype)
    pattern = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(dtype)
    mask = _mask(spec, args, kwargs)
    if mask is not None and mask.dtype == torch.bool and kwargs.get("position_bias") is None:
        # A row that may look nowhere (padding) gets nothing from torch's fused attention.
        pattern = pattern.masked_fill(~mask[..., : pattern.shape[-1]], 0.0)
    return pattern


def _masked(
    module: Any,
    spec: dict[str, Any],
    args: tuple,
    kwargs: dict,
    scores: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    lowest = torch.finfo(scores.dtype).min
    queries, keys = scores.shape[-2:]
    if spec.get("window"):
        allowed = getattr(module, spec["window"])[:, :, keys - queries : keys, :keys]
        scores = torch.where(allowed, scores, lowest)
    mask = _mask(spec, args, kwargs)
    if mask is None:
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        # Only fused attention leaves the causal mask to a flag; the eager functions get it as a tensor.
        if _implementation(module) == "eager" or not causal or queries == 1:
            return scores
        mask = torch.ones(queries, keys, dtype=torch.bool, device=scores.device).tril()
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, lowest)
    return scores + mask[..., :keys]


def per_query_head(
    x: Float[Tensor, "batch head position unit"], heads: int
) -> Float[Tensor, "batch query_head position unit"]:
    """Repeat keys or values that a group of query heads shares."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)
