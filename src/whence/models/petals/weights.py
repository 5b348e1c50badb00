"""The weights outside of the blocks: embeddings, final norm and head, and none of a checkpoint's other files."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from whence.core.errors import ModelError
from whence.models.checkpoints import adopt_generation_settings, hub_options, unloadable


def outer_model(skeleton: Any, blocks: str, where: str, name: str, dtype: Any, options: dict[str, Any]) -> Any:
    """Load a model without its blocks.

    Args:
        skeleton: The whole model, without weights.
        blocks: Path of the list of blocks in it.
        where: The folder or hub id to load from.
        name: What the user called it.
        dtype: The torch dtype of the weights here.
        options: Options of transformers' ``from_pretrained``.

    Returns:
        A model of the same class whose list of blocks is empty; its configuration is the whole model's.

    Raises:
        ModelError: The checkpoint cannot be loaded, or lacks a weight.
    """
    config = copy.deepcopy(skeleton.config)
    depth = config.num_hidden_layers
    config.num_hidden_layers = 0
    own = {key: value for key, value in options.items() if key not in hub_options(options)}
    try:
        state = outer_state(where, blocks, options)
        hf, report = type(skeleton).from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True, **own
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise unloadable(name, error) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{name}: the checkpoint has no weights for {', '.join(missing[:5])}.")
    hf.config.num_hidden_layers = depth
    adopt_generation_settings(hf, where, options)
    return hf.eval().requires_grad_(False)


def outer_state(where: str, blocks: str, options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Read the tensors outside of the blocks from a checkpoint; only files that have any are fetched.

    Args:
        where: The folder or hub id.
        blocks: Path of the list of blocks, such as ``"model.layers"``.
        options: Options of transformers' ``from_pretrained``.

    Returns:
        Tensors by their names in the checkpoint.

    Raises:
        OSError: There are no weights.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

    # Checkpoints of a model without its head leave out the first part of the path.
    inside = tuple(f"{path}." for path in {blocks, blocks.partition(".")[2]} if path)
    for index in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        # A single file goes before an index of the other format, as in transformers.
        single = SAFE_WEIGHTS_NAME if index == SAFE_WEIGHTS_INDEX_NAME else WEIGHTS_NAME
        if (path := _file(where, single, options)) is not None:
            return _outside(path, inside)
        if (path := _file(where, index, options)) is not None:
            places: dict[str, str] = json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"]
            wanted = {file for key, file in places.items() if not key.startswith(inside)}
            state: dict[str, torch.Tensor] = {}
            for file in sorted(wanted):
                state |= _outside(_file(where, file, options, required=True), inside)
            return state
    raise OSError(f"{where} has no {SAFE_WEIGHTS_NAME}, no {WEIGHTS_NAME}, and no index of several such files.")


def _file(where: str, file: str, options: dict[str, Any], *, required: bool = False) -> Any:
    from transformers.utils.hub import cached_file

    found = {key: value for key, value in hub_options(options).items() if key != "trust_remote_code"}
    return cached_file(where, file, _raise_exceptions_for_missing_entries=required, **found)


def _outside(path: str, inside: Sequence[str]) -> dict[str, torch.Tensor]:
    if path.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(path, framework="pt") as tensors:
            return {key: tensors.get_tensor(key) for key in list(tensors.keys()) if not key.startswith(tuple(inside))}
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {key: value for key, value in found.items() if not key.startswith(tuple(inside))}
