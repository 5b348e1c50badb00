"""From a name and peers of a swarm to a `Model` with its embeddings and head here and its blocks there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from whence.core.contract import Need
from whence.core.errors import InputError, ModelError, UnsupportedError
from whence.models.checkpoints import find_config, find_tokenizer, locate, unloadable
from whence.models.components import Architecture, Site, architecture, nnsight_names, restricted
from whence.models.model import Model
from whence.models.petals.routing import default_prefix

PETALS = "petals"
_INSIDE = "a Petals swarm gives what goes from block to block, and nothing inside of blocks"
_TUPLES = ("bloom", "falcon")


def load_petals(
    name: str,
    *,
    peers: Sequence[str],
    dht_prefix: str | None = None,
    dtype: Any = None,
    tokenizer: Any = None,
    timeout: float | None = None,
    family: Any = None,
    **options: Any,
) -> Model:
    """Load the ends of a model and connect to a swarm for the rest.

    Args:
        name: Hub id or folder of the checkpoint. Only embeddings, last norm and head are loaded.
        peers: Addresses of some servers of the swarm.
        dht_prefix: The model's name in the swarm; for a hub id by default what Petals makes of it.
        dtype: torch dtype of the ends; float32 by default.
        tokenizer: A tokenizer, or where to load it from.
        timeout: Seconds that one pass through a block may take; by default 180.
        family: A row for an unknown architecture.
        **options: Further options of transformers' ``from_pretrained``.

    Returns:
        The model. ``model.nn._module.swarm.close()`` leaves the swarm; so does the end of the process.

    Raises:
        InputError: A folder, and no ``dht_prefix``.
        UnsupportedError: An encoder-decoder model, or hivemind is not installed.
        ModelError: The checkpoint cannot be loaded.
        SwarmError: No peer answers, or some block is held by nobody.
    """
    import nnsight
    import torch
    from transformers import AutoModelForCausalLM

    where = locate(name)
    config = find_config(where, name, options)
    if config.is_encoder_decoder:
        raise UnsupportedError(f"{name}: Petals serves decoder-only models.")
    if dht_prefix is None:
        if Path(where).is_dir():
            raise InputError(f"{name} is a folder: say what the swarm calls the model, with dht_prefix=.")
        dht_prefix = default_prefix(name, config.model_type)
    with torch.device("meta"):
        whole: Any = AutoModelForCausalLM.from_config(config)
    arch = _boundaries(architecture(whole, family=family))
    depth = arch.n_layers["decoder"]
    # No blocks are built, so their weights are not loaded.
    config.num_hidden_layers = 0
    try:
        hf: Any = AutoModelForCausalLM.from_pretrained(where, config=config, dtype=dtype or torch.float32, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise unloadable(name, error) from error
    config.num_hidden_layers = hf.config.num_hidden_layers = depth

    from whence.models.petals.blocks import Padding, RemoteBlock
    from whence.models.petals.swarm import DEFAULT_TIMEOUT, Swarm

    swarm = Swarm(peers, dht_prefix, depth, DEFAULT_TIMEOUT if timeout is None else timeout)
    try:
        there = _served(swarm, depth, hf.dtype)
    except BaseException:
        swarm.close()
        raise
    padding = Padding()
    hf.base_model.register_forward_pre_hook(padding.look, with_kwargs=True)
    as_tuple = config.model_type in _TUPLES
    blocks = [RemoteBlock(swarm, number, padding, as_tuple) for number in range(depth)]
    host, _, last = arch.paths["blocks"]["decoder"].rpartition(".")
    setattr(hf.get_submodule(host), last, torch.nn.ModuleList(blocks))
    hf.swarm = swarm
    hf.config.use_cache = hf.generation_config.use_cache = False
    hf.requires_grad_(False).eval()
    if tokenizer is None or isinstance(tokenizer, str | Path):
        tokenizer = find_tokenizer(str(tokenizer or where), options, required=tokenizer is not None)
    rename, envoys = nnsight_names(arch)
    names: dict[Any, Any] = dict(rename)
    info = {
        "revision": getattr(hf.config, "_commit_hash", None),
        "class": type(hf).__name__,
        "attention": "eager",
        "dtype": str(hf.dtype).removeprefix("torch."),
        **there,
        "dht_prefix": dht_prefix,
    }
    return Model(
        nnsight.NNsight(hf, rename=names, envoys=envoys),
        tokenizer,
        arch,
        name,
        place=PETALS,
        provides=frozenset({Need.LOGITS, Need.EMBEDDINGS, Need.GRADIENTS}),
        lacks={Need.INTERNALS: _INSIDE, Need.ATTENTION: _INSIDE},
        info=info,
    )


def _boundaries(found: Architecture) -> Architecture:
    """The sites outside of blocks, and at their boundaries."""

    def given(site: Site) -> bool:
        return site.layer is None or site.name.endswith((".resid_pre", ".resid_post"))

    arch = restricted(found, given, _INSIDE)
    # Other sites have a block's source prepared by nnsight; a remote block has none.
    sites = {
        name: replace(site, spec={key: value for key, value in site.spec.items() if key != "instrument"})
        for name, site in arch.sites.items()
    }
    return replace(arch, sites=sites)


def _served(swarm: Any, depth: int, dtype: Any) -> dict[str, Any]:
    """How the swarm holds the blocks; a warning where that is not how the ends are."""
    holders = swarm.holders()
    for block in range(depth):
        if block not in holders:
            swarm.table.choose(block)
    kinds = {str(one.info.get("torch_dtype", "")).removeprefix("torch.") for many in holders.values() for one in many}
    quantised = {str(one.info.get("quant_type") or "none").lower() for many in holders.values() for one in many}
    here = str(dtype).removeprefix("torch.")
    other = sorted(kinds - {"", "auto", here}) + sorted(quantised - {"none"})
    if other:
        warnings.warn(
            f"the swarm holds its blocks in {', '.join(other)}, and the ends of the model here are in {here}: scores "
            "are those of the swarm's weights.",
            UserWarning,
            stacklevel=4,
        )
    if not holders:
        raise ModelError(f"the swarm knows no model {swarm.table.prefix!r}.")
    return {"blocks_dtype": sorted(kinds - {""}), "quantisation": ", ".join(sorted(quantised - {"none"})) or None}
