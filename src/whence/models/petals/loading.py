"""From a name and the addresses of a swarm to a `Model` whose blocks are there."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whence.core.contract import PLACES, Need
from whence.core.errors import InputError, ModelError, UnsupportedError
from whence.models.checkpoints import chosen_tokenizer, find_config, locate, skeleton
from whence.models.components import Architecture, Site, architecture, nnsight_names, restricted
from whence.models.model import Model
from whence.models.petals.blocks import Padding, RemoteBlock
from whence.models.petals.routing import Holder
from whence.models.petals.swarm import DEFAULT_TIMEOUT, Swarm
from whence.models.petals.weights import outer_model

PETALS = "petals"
_INSIDE = (
    "a Petals swarm gives what goes into a block and what comes out of it, not what is inside. Take a site at the "
    "boundary of a block (resid_pre, resid_post), or load the model somewhere else"
)
_FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_petals(
    name: str,
    *,
    peers: Sequence[str],
    dht_prefix: str | None = None,
    dtype: Any = None,
    tokenizer: Any = None,
    timeout: float = DEFAULT_TIMEOUT,
    family: Any = None,
    **from_pretrained: Any,
) -> Model:
    """Load embeddings, final norm and head of a model whose blocks are in a Petals swarm.

    The swarm itself is ``model.nn._module.swarm``: its ``traffic`` counts requests and bytes, its ``close`` ends
    the connection before the model is dropped.

    Args:
        name: A hub id or a folder; only the files that hold weights outside of the blocks are read.
        peers: Addresses of servers, as they print them: ``"/ip4/.../tcp/.../p2p/..."``.
        dht_prefix: What the names of the model's blocks begin with in the swarm; by default what Petals makes of a
            hub id.
        dtype: The torch dtype of the weights here; by default what the servers compute in.
        tokenizer: A tokenizer, or where to load it from.
        timeout: Seconds that one server may take for one request.
        family: A row for an unknown architecture.
        **from_pretrained: Further options of transformers' ``from_pretrained``, such as ``revision``.

    Returns:
        The model.

    Raises:
        InputError: A folder without ``dht_prefix``, or an address that cannot be read.
        ModelError: The checkpoint cannot be loaded, or its architecture is not known.
        SwarmError: No peer answers, or some block has no server.
        UnsupportedError: hivemind is not installed, or the model has an encoder.
    """
    where = locate(name)
    config = find_config(where, name, from_pretrained)
    prefix = dht_prefix or default_prefix(name, where, config)
    if re.search(r"[.\s]", prefix) or not prefix:
        raise InputError(f"dht_prefix={prefix!r}: names in a swarm have no dots and no spaces.")
    if config.is_encoder_decoder:
        raise UnsupportedError(f"{name}: a Petals swarm runs decoder-only models, and this one has an encoder.")
    tokenizer = chosen_tokenizer(tokenizer, where, from_pretrained)
    empty = skeleton(config, name, from_pretrained)
    whole = architecture(empty, family=family)
    blocks, count = whole.paths["blocks"]["decoder"], whole.n_layers["decoder"]
    swarm = Swarm(peers, prefix, count, timeout=timeout)
    try:
        holders = swarm.holders()
        computes = sorted({one.dtype for block in holders.values() for one in block if one.dtype})
        here = dtype or _FLOATS.get(computes[0] if len(computes) == 1 else "", torch.float32)
        hf = outer_model(empty, blocks, where, name, here, from_pretrained)
        _hang_in(hf, swarm, blocks)
    except BaseException:
        swarm.close()
        raise
    _compare_dtypes(computes, hf.dtype)
    found = boundaries(whole)
    rename, envoys = nnsight_names(found)
    names: dict[Any, Any] = dict(rename)
    info = {
        "revision": from_pretrained.get("revision") or getattr(config, "_commit_hash", None),
        "class": type(hf).__name__,
        "dtype": _joined(computes, "unknown"),
        "quantisation": _joined(sorted({one.quantisation for one in _all(holders) if one.quantisation}), None),
        "dht_prefix": prefix,
    }
    import nnsight

    return Model(
        nnsight.NNsight(hf, rename=names, envoys=envoys),
        tokenizer,
        found,
        name,
        place=PETALS,
        provides=PLACES["petals"],
        lacks={need: _INSIDE for need in Need if need not in PLACES["petals"]},
        info=info,
    )


def default_prefix(name: str, where: str, config: Any) -> str:
    """What Petals' servers call the blocks of a model on the hub, when nobody says otherwise.

    Args:
        name: What the user called the model.
        where: Where its checkpoint is.
        config: Its configuration.

    Returns:
        The prefix.

    Raises:
        InputError: It is a folder, or Petals has no rule for its kind.
    """
    if Path(where).is_dir():
        raise InputError(
            f"{name} is a folder, whose name tells nothing to a swarm; give dht_prefix= as its servers do."
        )
    whole, short = name.replace(".", "-"), name.rpartition("/")[2].replace(".", "-")
    rules = {
        "bloom": f"{whole}-petals",
        "falcon": short,
        "llama": short if short.endswith("-hf") else f"{short}-hf",
        "mixtral": whole,
    }
    if config.model_type not in rules:
        raise InputError(
            f"{name}: Petals has no name of its own for models of type {config.model_type!r}; give dht_prefix= as "
            "the servers do."
        )
    return rules[config.model_type]


def boundaries(whole: Architecture) -> Architecture:
    """The architecture without what is inside of the blocks.

    Args:
        whole: The architecture of the same model, loaded in one piece.

    Returns:
        The architecture.
    """

    def given(site: Site) -> bool:
        return site.layer is None or site.name.endswith((".resid_pre", ".resid_post"))

    found = restricted(whole, given, _INSIDE)
    # Other sites have a block's source prepared before it runs; here there is none.
    sites = {
        name: replace(site, spec={key: value for key, value in site.spec.items() if key != "instrument"})
        for name, site in found.sites.items()
    }
    return replace(found, sites=sites)


def _hang_in(hf: Any, swarm: Swarm, blocks: str) -> None:
    """Put blocks of the swarm where the model's own would be."""
    padding = Padding()
    as_tuple = returns_tuple(hf, blocks)
    made = [RemoteBlock(swarm, block, padding, as_tuple=as_tuple) for block in range(swarm.blocks)]
    hf.set_submodule(blocks, nn.ModuleList(made))
    padding.attach(hf.base_model)
    hf.config.use_cache = hf.generation_config.use_cache = False
    hf.swarm = swarm


class _Through(nn.Module):
    """A block that does nothing."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states, None) if self.as_tuple else hidden_states


def returns_tuple(hf: Any, blocks: str) -> bool:
    """Whether the blocks of an architecture return a tuple, found by trying what its model takes.

    Args:
        hf: The model, without blocks.
        blocks: Path of the list of its blocks.

    Returns:
        True for a tuple, False for the tensor itself.

    Raises:
        ModelError: It takes neither.
    """
    ids = torch.zeros(2, 1, dtype=torch.long)
    for as_tuple in (False, True):
        hf.set_submodule(blocks, nn.ModuleList([_Through(as_tuple)]))
        try:
            with torch.no_grad():
                logits = hf(input_ids=ids, use_cache=False).logits
        except (AttributeError, TypeError, IndexError, ValueError, RuntimeError):
            continue
        # The first element of a tensor is its first row, which a model that wants a tuple goes on with.
        if logits.shape[:2] == ids.shape:
            return as_tuple
    raise ModelError(
        f"{type(hf).__name__} does not run with blocks that give a tensor, nor with ones that give a tuple."
    )


def _compare_dtypes(computes: Sequence[str], here: torch.dtype) -> None:
    own = str(here).removeprefix("torch.")
    if computes and list(computes) != [own]:
        warnings.warn(
            f"the swarm computes blocks in {' and '.join(computes)}, and this process the rest in {own}: results have "
            f"the precision of the coarsest, and servers with different ones differ from each other.",
            UserWarning,
            # The line that calls whence.load.
            stacklevel=5,
        )


def _all(holders: Mapping[int, Iterable[Holder]]) -> list[Holder]:
    return [one for block in holders.values() for one in block]


def _joined(found: Sequence[str], none: str | None) -> str | None:
    return "+".join(found) if found else none
