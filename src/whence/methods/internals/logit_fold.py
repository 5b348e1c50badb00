"""The fold of direct logit and ALTI-logit: what every part of the residual stream adds to a logit.

Travels by its source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.methods.internals.alti_fold import mix_in
from whence.methods.internals.composition import at_steps, identity_map, note, stack_map
from whence.probe.branches import at_rows, attention_block, attention_sum, rebuilding_gap, rows_of, stream_gap
from whence.probe.unembedding import final_scales, step_logits, through_final_norm, token_directions

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def logit_fold(model: Any, state: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> None:
    """One attention module, one MLP, or the end of the model.

    Args:
        model: The nnsight model.
        state: See `whence.probe.observe.fold_stages`; ``data`` has ``routed`` (to tokens of the input by ALTI, instead
            of to positions), ``norm``, ``spread_mlp``, ``own_embedding``, ``per_layer``, ``per_head`` and ``widths``.
            Found are ``scores`` [example, step, token(, layer)(, head)], every component [example, step(, layer)],
            ``stream`` (how far the residual stream is from a plain sum) and ``rebuilding`` [example], and where
            routed, ``flat`` [example].
        stage: The stage.
        values: Its values.
    """
    kind = stage["facts"]["kind"]
    if kind in ("attn", "cross_attn"):
        _attention(model, state, stage, values)
    elif kind == "mlp":
        _mlp(state, stage["facts"]["layer"], values["mlp"])
    elif kind == "norm":
        state["scale"] = final_scales(model, state["run"], values["stream"], values["normed"])
    else:
        _end(state, values)


def _attention(model: Any, state: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> None:
    facts, run, data = stage["facts"], state["run"], state["data"]
    block = attention_block(model, stage, values) if data["routed"] else None
    if facts["stack"] == "decoder":
        if "directions" not in state:
            _start(model, state, values["before"])
        note(state, "stream", stream_gap(run, stage, values))
        added = attention_sum(model, stage, values, run["query"]) if block is None else rows_of(block, run["query"])
        _component(state, "attention_bias", facts["layer"], _logit(state, added["bias"]))
        stack = "decoder" if facts["kind"] == "attn" else "encoder"
        brought = _brought(state, added["parts"][0])
        routes = identity_map(state, stack, brought) if block is None else stack_map(state, stack, brought)
        _add(state, facts["layer"], torch.einsum("bhtk,bki->btih", brought, routes))
        if block is None:
            note(state, "rebuilding", rebuilding_gap(added, None))
    if block is not None:
        mix_in(state, stage, block, data["norm"])


def _start(model: Any, state: dict[str, Any], stream: Float[Tensor, "batch position unit"]) -> None:
    """The directions of the steps' tokens, and what does not go through a block."""
    run = state["run"]
    directions, bias = token_directions(model, run, stream)
    state["directions"], offset = through_final_norm(model, run, directions, stream)
    state["after_norm"], state["biases"] = offset, bias
    state["components"] = {}
    embedding = _logit(state, at_rows(stream, run["query"]))
    if state["data"]["own_embedding"]:
        _add(state, 0, (embedding[..., None] * at_steps(run, identity_map(state, "decoder", embedding)))[..., None])
    else:
        state["embedding"] = embedding


def _brought(state: dict[str, Any], part: dict[str, Any]) -> Float[Tensor, "batch head step key"]:
    """What each key brings to the logit through each head, or through all."""
    directions = state["directions"].to(part["vectors"].device)
    each = torch.einsum("bkhu,btu->bhtk", part["vectors"], directions)
    brought = part["weights"] * each
    return brought if state["data"]["per_head"] else brought.sum(1, keepdim=True)


def _mlp(state: dict[str, Any], layer: int, out: Float[Tensor, "batch position unit"]) -> None:
    logit = _logit(state, at_rows(out, state["run"]["query"]))
    if state["data"]["spread_mlp"]:
        mixed = at_steps(state["run"], stack_map(state, "decoder", logit))
        _add(state, layer, (logit[..., None] * mixed)[..., None])
    else:
        _component(state, "mlp", layer, logit)


def _logit(state: dict[str, Any], x: Float[Tensor, "batch step unit"]) -> Float[Tensor, "batch step"]:
    """What a vector of the stream adds to the logit of each step, but for the last norm's division."""
    return (x * state["directions"].to(x.device)).sum(-1)


def _component(state: dict[str, Any], name: str, layer: int, logit: Float[Tensor, "batch step"]) -> None:
    layers, logit = state["components"].setdefault(name, {}), logit.cpu()
    layers[layer] = layers[layer] + logit if layer in layers else logit


def _add(state: dict[str, Any], layer: int, scores: Float[Tensor, "batch step token head"]) -> None:
    layers, scores = state.setdefault("layers", {}), scores.cpu()
    place = layer if state["data"]["per_layer"] else 0
    layers[place] = layers[place] + scores if place in layers else scores


def _end(state: dict[str, Any], values: dict[str, Tensor]) -> None:
    """Divide by the size of the stream, and keep what the model adds at its head and after it."""
    run, data, found = state["run"], state["data"], state["found"]
    scale, factor = (one.cpu() for one in state["scale"])
    scores = torch.stack([state["layers"][layer] for layer in sorted(state["layers"])], dim=3)
    scores = scores * scale[..., None, None, None]
    scores = scores if data["per_head"] else scores.squeeze(-1)
    found["scores"] = scores if data["per_layer"] else scores.squeeze(3)
    for name, layers in state["components"].items():
        found[name] = torch.stack([layers[layer] for layer in sorted(layers)], dim=2) * scale[..., None]
    if "embedding" in state:
        found["embedding"] = state["embedding"].cpu() * scale
    found["final_norm_bias"] = state["after_norm"].cpu() * factor[:, None]
    found["unembed_bias"] = state["biases"]
    found["after_unembed"] = step_logits(run, values["logits"]).cpu() - step_logits(run, values["unembed"]).cpu()
