"""Whether a row of the table of architectures fits a model: its module tree and its source."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from whence.models.family import Attention, Family, Stack
from whence.models.lines import calls_in_order, quoted

KNOWN_ARGUMENTS = {
    *("module", "query", "key", "value", "attention_mask"),
    *("scaling", "dropout", "softcap", "position_bias", "s_aux", "kwargs"),
}


def module_names(hf_model: Any) -> set[str]:
    """The path of every module of a model."""
    return {name for name, _ in hf_model.named_modules(remove_duplicate=False)}


def missing_names(tree: set[str], row: Family) -> list[str]:
    """What a row names and the module tree of a model does not have."""
    missing = []
    for label, stack in row.stacks().items():
        outside = {part: getattr(stack, part) for part in ("embed", "embed_norm", "blocks", "ln_final")}
        missing += [f"{label}.{k} ({v!r})" for k, v in outside.items() if v and find(tree, "", v) is None]
        blocks = find(tree, "", stack.blocks)
        if blocks is None:
            continue
        if f"{blocks}.0" not in tree:
            missing.append(f"{label}.blocks ({blocks!r} is empty)")
            continue
        for part, path in _block_parts(stack).items():
            layers = range(count_blocks(tree, blocks))
            lacking = [layer for layer in layers if find(tree, f"{blocks}.{layer}", path) is None]
            if lacking:
                missing.append(f"{label}.{part} ({path!r} in {blocks}.{lacking[0]})")
    if find(tree, "", row.unembed) is None:
        missing.append(f"unembed ({row.unembed!r})")
    return missing


def _block_parts(stack: Stack) -> dict[str, str]:
    """Every module path of a block that a row gives, under the field it is given by."""
    parts = {"attn": stack.attn, "mlp": stack.mlp}
    inside = {part: getattr(stack, part) for part in ("attn_proj", "q_norm", "k_norm")}
    parts |= {part: f"{stack.attn}.{path}" for part, path in inside.items() if path}
    named = ["ln1", "ln2", "attn_out", "mlp_pre", "mlp_act", "mlp_up", "mlp_post", "mlp_out"]
    if stack.cross_attn:
        parts["cross_attn"] = stack.cross_attn
        named.append("ln_cross")
    parts |= {name: getattr(stack, name) for name in named}
    for name in ("resid_mid", "resid_mid_cross"):
        if name in stack.order.split() and not is_line(getattr(stack, name)):
            parts[name] = getattr(stack, name)
    in_order = set(stack.order.split())
    return {k: v for k, v in parts.items() if v and not (k.startswith("ln") and k not in in_order)}


def is_line(text: str) -> bool:
    """Whether a row quotes a line of source there, rather than naming a module."""
    return " = " in text


def misfits(hf_model: Any, row: Family) -> list[str]:
    """Why a row that was made for another model type must not be used for a model.

    Names alone do not tell how a block computes. The blocks must also have nothing with weights that the row
    does not name, call their parts in the row's order, and read like the row's quoted lines.
    """
    tree = module_names(hf_model)
    found = missing_names(tree, row)
    if found:
        return found
    for label, stack in row.stacks().items():
        blocks = find(tree, "", stack.blocks) or ""
        layers = (f"{blocks}.{layer}" for layer in range(count_blocks(tree, blocks)))
        misfit = (_block_misfits(hf_model, tree, block, stack) for block in layers)
        found += [f"{label}: {text}" for text in next(filter(None, misfit), [])]
    return found


def _block_misfits(hf_model: Any, tree: set[str], path: str, stack: Stack) -> list[str]:
    block = hf_model.get_submodule(path)
    parts = {part: find(tree, path, name) or "" for part, name in _block_parts(stack).items()}
    inside = {found.removeprefix(f"{path}.").partition(".")[0] for found in parts.values() if found}
    found = [
        f"{path}.{name} has no place"
        for name, child in block.named_children()
        if name not in inside and any(True for _ in child.parameters())
    ]
    code = _source(block)
    called = calls_in_order(code)
    steps = [parts[step].removeprefix(f"{path}.") for step in stack.order.split() if parts.get(step)]
    steps = list(dict.fromkeys(name for name in steps if "." not in name))
    if [name for name in called if name in steps] != steps:
        found.append(f"{path} does not call its parts in the order {stack.order!r}")
    if is_line(stack.resid_mid) and "resid_mid" in stack.order and not quoted(code, stack.resid_mid):
        found.append(f"{path} has no line {stack.resid_mid!r}")
    for name in ("attn", "cross_attn"):
        if parts.get(name):
            found += _attention_misfits(hf_model.get_submodule(parts[name]), parts[name], stack.attention)
    return found


def _attention_misfits(module: Any, path: str, attention: Attention) -> list[str]:
    code = _source(module)
    texts = [line.text for part in "qkv" if (line := getattr(attention, part))] or [attention.call]
    found = [f"{path} has no line {text!r}" for text in texts if not quoted(code, text)]
    names = [attention.divisor, attention.window, attention.scale]
    found += [f"{path} has no attribute {name!r}" for name in names if name and not hasattr(module, name)]
    # The pattern is recomputed from the call's arguments, so all that matter must be known.
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if attention.arguments == "interface" and eager is not None:
        strange = set(inspect.signature(eager).parameters) - KNOWN_ARGUMENTS
        found += [f"{path} computes attention with {name!r}" for name in sorted(strange)]
    return found


def _source(module: Any) -> str:
    # Of the class: nnsight replaces the forward of a model that it has wrapped.
    try:
        return inspect.getsource(inspect.unwrap(type(module).forward))
    except (OSError, TypeError):
        return ""


def find(tree: set[str], prefix: str, path: str) -> str | None:
    """The first alternative of a path that the tree has; ``""`` if it may be missing, None if it must not."""
    for option in path.split("|"):
        if not option:
            return ""
        full = f"{prefix}.{option.partition(':')[0]}".removeprefix(".")
        if full in tree:
            return full
    return None


def count_blocks(tree: set[str], blocks: str) -> int:
    """The number of blocks in the module list at a path."""
    count = 0
    while f"{blocks}.{count}" in tree:
        count += 1
    return count
