"""The untraced model, looked at with plain PyTorch hooks: blocks, values, attention weights, tokens pushed through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

Edit = Callable[[Tensor], Tensor]


def text_inputs(model: Any, prompt: list[int], continuation: list[int]) -> tuple[dict[str, Tensor], list[int]]:
    """The whole text as the model reads it, and the position that predicts each token of the continuation."""
    if model.config.is_encoder_decoder:
        read = [model.config.decoder_start_token_id, *continuation[:-1]]
        ids = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([read])}
        return ids, list(range(len(continuation)))
    ids = {"input_ids": torch.tensor([[*prompt, *continuation[:-1]]])}
    return ids, list(range(len(prompt) - 1, len(prompt) - 1 + len(continuation)))


def attentions(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers reports: ``decoder``, ``encoder`` and ``cross`` [layer, head, query, key] of the one text."""
    with torch.no_grad():
        output = model(**inputs, use_cache=False, output_attentions=True)
    if model.config.is_encoder_decoder:
        found = {
            "decoder": output.decoder_attentions,
            "encoder": output.encoder_attentions,
            "cross": output.cross_attentions,
        }
    else:
        found = {"decoder": output.attentions}
    return {family: torch.stack(list(layers))[:, 0] for family, layers in found.items()}


def blocks(model: Any, stack: str) -> list[torch.nn.Module]:
    """The blocks of a stack: the longest-known lists of modules, by what they are called everywhere."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and name.rpartition(".")[2] in ("h", "layers", "block", "blocks")
    ]
    if model.config.is_encoder_decoder:
        lists = [(name, module) for name, module in lists if f"{stack}." in name]
    return list(lists[0][1])


def value_edit(model: Any, block: torch.nn.Module, family: str, edit: Edit) -> tuple[torch.nn.Module, Edit]:
    """Where the values of a block are made, and an edit of that output which edits the values only.

    Args:
        model: The model.
        block: One of its blocks.
        family: ``"cross"`` for its cross attention, else its self attention.
        edit: An edit of the values [batch, key, kv_head, unit].

    Returns:
        The module, and the edit of what it returns.
    """
    kind = model.config.model_type
    names = dict(block.named_modules())

    def module_of(suffix: str) -> torch.nn.Module:
        crossed = ("encoder_attn.", "EncDecAttention.")
        found = [
            module
            for name, module in names.items()
            if name.endswith(suffix) and any(part in name for part in crossed) == (family == "cross")
        ]
        return found[0]

    def alone(size: int) -> Edit:
        return lambda out: edit(out.unflatten(-1, (-1, size))).flatten(-2)

    def per_head(parts: int, place: int, heads: int) -> Edit:
        """Each head, or group of heads, has its query, key and value side by side."""

        def change(out: Tensor) -> Tensor:
            split = out.unflatten(-1, (heads, parts, -1)).clone()
            split[..., place, :] = edit(split[..., place, :])
            return split.flatten(-3)

        return change

    def last_third(share: int, size: int) -> Edit:
        """Values are the last units of the output."""

        def change(out: Tensor) -> Tensor:
            return torch.cat([out[..., :-share], edit(out[..., -share:].unflatten(-1, (-1, size))).flatten(-2)], -1)

        return change

    config = model.config
    if kind == "gpt2":
        return module_of(".c_attn"), last_third(config.n_embd, config.n_embd // config.n_head)
    if kind == "mpt":
        return module_of(".Wqkv"), last_third(config.d_model, config.d_model // config.n_heads)
    if kind == "phi3":
        size = config.hidden_size // config.num_attention_heads
        return module_of(".qkv_proj"), last_third(config.num_key_value_heads * size, size)
    if kind in ("bloom", "gpt_neox"):
        return module_of(".query_key_value"), per_head(3, 2, config.num_attention_heads)
    if kind == "falcon":
        size = config.hidden_size // config.num_attention_heads
        if config.new_decoder_architecture:
            shared = config.num_attention_heads // config.num_kv_heads
            return module_of(".query_key_value"), per_head(shared + 2, shared + 1, config.num_kv_heads)
        if config.multi_query:
            return module_of(".query_key_value"), last_third(size, size)
        return module_of(".query_key_value"), per_head(3, 2, config.num_attention_heads)
    if kind in ("t5", "mt5"):
        return module_of(".v"), alone(config.d_kv)
    # Stacks of an encoder-decoder model may have heads of different size.
    own = block.self_attn.head_dim if config.is_encoder_decoder else getattr(config, "head_dim", None)
    size = own or config.hidden_size // config.num_attention_heads
    return module_of(".v_proj"), alone(size)


def projection(block: torch.nn.Module, family: str) -> torch.nn.Module:
    """The output projection of a block's attention."""
    crossed = ("encoder_attn.", "EncDecAttention.")
    ends = (".o_proj", ".out_proj", ".o", ".dense", "attn.c_proj")
    return next(
        module
        for name, module in block.named_modules()
        if name.endswith(ends) and any(part in name for part in crossed) == (family == "cross")
    )


@contextmanager
def hooked(
    outputs: Sequence[tuple[torch.nn.Module, Edit]] = (), inputs: Sequence[tuple[torch.nn.Module, Edit]] = ()
) -> Iterator[None]:
    """Plain hooks that replace what modules return, or are given."""

    def after(edit: Edit) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

        return hook

    def before(edit: Edit) -> Callable[..., Any]:
        return lambda module, args: (edit(args[0]), *args[1:])

    with ExitStack() as stack:
        for module, edit in outputs:
            stack.callback(module.register_forward_hook(after(edit)).remove)
        for module, edit in inputs:
            stack.callback(module.register_forward_pre_hook(before(edit)).remove)
        yield


def output_of(
    model: Any,
    inputs: dict[str, Tensor],
    module: torch.nn.Module,
    outputs: Sequence[tuple[torch.nn.Module, Edit]] = (),
    given: Sequence[tuple[torch.nn.Module, Edit]] = (),
) -> Tensor:
    """What a module returns for the one text, with edits elsewhere [position, unit]."""
    seen: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        seen.append(value.detach())
        return value

    with torch.no_grad(), hooked([*outputs, (module, keep)], given):
        model(**inputs, use_cache=False)
    return seen[0].reshape(-1, seen[0].shape[-1])


@contextmanager
def tokens_pushed(model: Any) -> Iterator[list[int]]:
    """Counts every token that passes through the first block of a stack: a list of one number per pass and stack."""
    counts: list[int] = []
    stacks = ("encoder", "decoder") if model.config.is_encoder_decoder else ("decoder",)

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        counts.append(states.shape[0] * states.shape[1])

    with ExitStack() as handles:
        for stack in stacks:
            first = blocks(model, stack)[0]
            handles.callback(first.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield counts
