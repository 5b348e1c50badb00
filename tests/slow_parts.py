"""The residual stream taken apart in plain PyTorch: explicit weight matrices, explicit norms, loops over tokens.

It shares nothing with whence but the ids: inputs of modules come from plain hooks on the untraced model, attention
weights from ``output_attentions``, everything else from the weights as the checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


@dataclass
class Norm:
    """A norm written out: gain, bias, epsilon, and whether the mean is removed."""

    gain: Tensor
    bias: Tensor
    eps: float
    centred: bool

    def inner(self, x: Tensor) -> Tensor:
        return x - x.mean() if self.centred else x

    def frozen(self, at: Tensor) -> Map:
        """The linear part of the norm, with the statistics of one vector."""
        size = (self.inner(at).square().mean() + self.eps).sqrt()
        return lambda x: self.gain * self.inner(x) / size


@dataclass
class Terms:
    """One position of the stream as a sum: a vector for every head and key, the residual, the biases; the total."""

    parts: Tensor  # [head, key, unit]
    residual: Tensor
    bias: Tensor
    total: Tensor

    def through(self, norm: Norm | None) -> Terms:
        """The same sum after a norm whose statistics are held."""
        if norm is None:
            return self
        apply = norm.frozen(self.total)
        parts = torch.stack([torch.stack([apply(x) for x in head]) for head in self.parts])
        return Terms(parts, apply(self.residual), apply(self.bias) + norm.bias, apply(self.total) + norm.bias)


@dataclass
class Attention:
    """One attention module of the model."""

    stack: str
    kind: str
    layer: int
    pattern: Tensor  # [head, query, key]
    values: Tensor  # [head, key, size]
    weight: Tensor  # [head, size, unit]
    bias: Tensor
    stream: Tensor  # [query, unit], what the branch is added to
    branch_norm: Norm | None = None
    sum_norm: Norm | None = None

    def added(self, i: int) -> Terms:
        """What the branch adds at position i."""
        parts = torch.einsum("hk,hkd,hdu->hku", self.pattern[:, i], self.values, self.weight)
        total = parts.sum((0, 1)) + self.bias
        return Terms(parts, torch.zeros_like(self.bias), self.bias, total).through(self.branch_norm)

    def summed(self, i: int) -> Terms:
        """The stream after the branch at position i, and after the norm of the sum, if there is one."""
        one = self.added(i)
        total = one.total + self.stream[i]
        return Terms(one.parts, self.stream[i], one.bias, total).through(self.sum_norm)


def norm_of(module: Any) -> Norm:
    """A norm from the attributes that its class has."""
    kind = type(module).__name__
    if kind == "LayerNorm":
        return Norm(module.weight, module.bias, module.eps, centred=True)
    gain = 1 + module.weight if kind.startswith("Gemma") else module.weight
    eps = module.eps if kind.startswith("Gemma") else module.variance_epsilon
    return Norm(gain, torch.zeros_like(gain), eps, centred=False)


def captured(hf: Any, inputs: dict[str, Tensor]) -> tuple[dict[str, Any], Any]:
    """What every module was given and returned in one run, and the run's own output."""
    seen: dict[str, Any] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            seen[name] = (args, kwargs, output)

        return hook

    handles = [m.register_forward_hook(hook_of(n), with_kwargs=True) for n, m in hf.named_modules()]
    with torch.no_grad():
        output = hf(**inputs, use_cache=False, output_attentions=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return seen, output


def given(seen: dict[str, Any], name: str, keyword: str = "hidden_states") -> Tensor:
    """The (named or first) tensor that a module was given."""
    args, kwargs, _ = seen[name]
    return (kwargs[keyword] if keyword in kwargs else args[0])[0]


def model_inputs(hf: Any, prompt: list[int], continuation: list[int]) -> dict[str, Tensor]:
    """The whole text, the last token unread."""
    if hf.config.is_encoder_decoder:
        start = hf.config.decoder_start_token_id
        return {
            "input_ids": torch.tensor([prompt]),
            "decoder_input_ids": torch.tensor([[start, *continuation[:-1]]]),
        }
    return {"input_ids": torch.tensor([[*prompt, *continuation[:-1]]])}


def heads_of(x: Tensor, heads: int, groups: int) -> Tensor:
    """Vectors per query head, where several share one: [head, position, size]."""
    return x.unflatten(-1, (groups, -1)).transpose(0, 1).repeat_interleave(heads // groups, dim=0)


def attentions(hf: Any, seen: dict[str, Any], output: Any) -> list[Attention]:
    """Every attention module, in the order of the forward pass."""
    kind = hf.config.model_type
    return {"gpt2": _gpt2, "llama": _llama, "gemma2": _llama, "t5": _t5, "marian": _marian}[kind](hf, seen, output)


def _gpt2(hf: Any, seen: dict[str, Any], output: Any) -> list[Attention]:
    found = []
    heads = hf.config.n_head
    for layer, block in enumerate(hf.transformer.h):
        name = f"transformer.h.{layer}"
        x = given(seen, f"{name}.attn")
        values = (x @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, dim=-1)[2]
        weight = block.attn.c_proj.weight.unflatten(0, (heads, -1))
        stream = given(seen, name)
        pattern = output.attentions[layer][0]
        bias = block.attn.c_proj.bias
        found.append(Attention("decoder", "attn", layer, pattern, heads_of(values, heads, heads), weight, bias, stream))
    return found


def _linear(x: Tensor, module: Any) -> Tensor:
    return x @ module.weight.T + (0 if module.bias is None else module.bias)


def _one(module: Any, x: Tensor, pattern: Tensor, names: tuple[str, str]) -> dict[str, Any]:
    v, o = (getattr(module, name) for name in names)
    heads = pattern.shape[0]
    size = o.weight.shape[1] // heads
    bias = torch.zeros(o.weight.shape[0]).to(x) if o.bias is None else o.bias
    return {
        "pattern": pattern,
        "values": heads_of(_linear(x, v), heads, v.weight.shape[0] // size),
        "weight": o.weight.T.unflatten(0, (heads, size)),
        "bias": bias,
    }


def _llama(hf: Any, seen: dict[str, Any], output: Any) -> list[Attention]:
    found = []
    for layer, block in enumerate(hf.model.layers):
        name = f"model.layers.{layer}"
        x = given(seen, f"{name}.self_attn")
        one = _one(block.self_attn, x, output.attentions[layer][0], ("v_proj", "o_proj"))
        branch = norm_of(block.post_attention_layernorm) if hf.config.model_type == "gemma2" else None
        found.append(Attention("decoder", "attn", layer, stream=given(seen, name), branch_norm=branch, **one))
    return found


def _t5(hf: Any, seen: dict[str, Any], output: Any) -> list[Attention]:
    found = []
    for stack, patterns in (("encoder", output.encoder_attentions), ("decoder", output.decoder_attentions)):
        for layer, block in enumerate(getattr(hf, stack).block):
            name = f"{stack}.block.{layer}.layer"
            x = given(seen, f"{name}.0.SelfAttention")
            one = _one(block.layer[0].SelfAttention, x, patterns[layer][0], ("v", "o"))
            found.append(Attention(stack, "attn", layer, stream=given(seen, f"{name}.0"), **one))
            if stack == "decoder":
                keys = given(seen, f"{name}.1.EncDecAttention", "key_value_states")
                one = _one(block.layer[1].EncDecAttention, keys, output.cross_attentions[layer][0], ("v", "o"))
                found.append(Attention(stack, "cross_attn", layer, stream=given(seen, f"{name}.1"), **one))
    return found


def _marian(hf: Any, seen: dict[str, Any], output: Any) -> list[Attention]:
    found = []
    for stack, patterns in (("encoder", output.encoder_attentions), ("decoder", output.decoder_attentions)):
        for layer, block in enumerate(getattr(hf.model, stack).layers):
            name = f"model.{stack}.layers.{layer}"
            x = given(seen, f"{name}.self_attn")
            one = _one(block.self_attn, x, patterns[layer][0], ("v_proj", "out_proj"))
            norm = norm_of(block.self_attn_layer_norm)
            found.append(Attention(stack, "attn", layer, stream=x, sum_norm=norm, **one))
            if stack == "decoder":
                keys = given(seen, f"{name}.encoder_attn", "key_value_states")
                x = given(seen, f"{name}.encoder_attn")
                one = _one(block.encoder_attn, keys, output.cross_attentions[layer][0], ("v_proj", "out_proj"))
                norm = norm_of(block.encoder_attn_layer_norm)
                found.append(Attention(stack, "cross_attn", layer, stream=x, sum_norm=norm, **one))
    return found


def near(part: Tensor, total: Tensor, power: float = 1) -> Tensor:
    """Proximity, written out."""
    return (total.norm(p=power) - (total - part).norm(p=power)).clamp_min(0)


def alti_rows(attention: Attention, power: float = 1) -> tuple[Tensor, Tensor]:
    """Shares of keys [query, key] and of the residual [query] in one module (ALTI, ALTI+)."""
    queries, keys = attention.pattern.shape[1:]
    found, rest = torch.zeros(queries, keys).double(), torch.zeros(queries).double()
    for i in range(queries):
        terms = attention.summed(i)
        for j in range(keys):
            vector = terms.parts[:, j].sum(0)
            if attention.kind == "attn" and i == j:
                vector = vector + terms.residual
            found[i, j] = near(vector, terms.total, power)
        if attention.kind == "cross_attn":
            rest[i] = near(terms.residual, terms.total, power)
    whole = found.sum(1) + rest
    return found / whole[:, None], rest / whole


def alti_maps(found: list[Attention], widths: tuple[int, ...], power: float = 1) -> dict[tuple[str, str, int], Tensor]:
    """The map of a stack after every module: shares of the tokens of all streams."""
    eye = torch.eye(sum(widths)).double()
    now = {"encoder": eye[: widths[0]], "decoder": eye[-widths[-1] :]}
    maps = {("decoder", "start", 0): now["decoder"]}
    for one in found:
        keys, rest = alti_rows(one, power)
        source = now["encoder"] if one.kind == "cross_attn" else now[one.stack]
        now[one.stack] = keys @ source + rest[:, None] * now[one.stack]
        maps[one.stack, one.kind, one.layer] = now[one.stack]
    maps["encoder", "end", 0] = now["encoder"]
    return maps


def step_rows(hf: Any, prompt: list[int], continuation: list[int]) -> list[int]:
    """The positions of the decoder that predict the continuation."""
    first = 0 if hf.config.is_encoder_decoder else len(prompt) - 1
    return [first + step for step in range(len(continuation))]


def widths_of(hf: Any, prompt: list[int], continuation: list[int]) -> tuple[int, ...]:
    """Tokens read by each stack."""
    if hf.config.is_encoder_decoder:
        return len(prompt), len(continuation)
    return (len(prompt) + len(continuation) - 1,)


def decomposed(hf: Any, prompt: list[int], continuation: list[int]) -> tuple[list[Attention], dict[str, Any], Any]:
    """Every attention module of the run over a text; what modules were given; the output."""
    hf.requires_grad_(False)
    seen, output = captured(hf, model_inputs(hf, prompt, continuation))
    return attentions(hf, seen, output), seen, output
