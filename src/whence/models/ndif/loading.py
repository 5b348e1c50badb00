"""From a name and a server's address to a `Model` whose weights are not here."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from whence.core.contract import PLACES, Need
from whence.core.errors import ModelError
from whence.models.checkpoints import adopt_generation_settings, chosen_tokenizer, find_config, locate, skeleton
from whence.models.components import architecture, nnsight_names
from whence.models.model import Model
from whence.models.ndif.server import Server, Transport
from whence.models.ndif.wire import DEFAULT_TIMEOUT, Connection

NDIF = "ndif"
_NO_GRADIENTS = (
    "jobs of this key run where the weights are not, so there are no gradients (or the server does not know the "
    "key). Ask the operators for a trusted key, or take derivative='finite' (input_x_gradient and "
    "integrated_gradients by central differences)"
)


def load_ndif(
    name: str,
    *,
    url: str = NDIF,
    api_key: str | None = None,
    timeout: float | None = None,
    tokenizer: Any = None,
    family: Any = None,
    transport: Transport | None = None,
    **options: Any,
) -> Model:
    """Load the skeleton of a model whose weights a server has.

    Args:
        name: The hub id or folder that the server has loaded. Configuration and tokenizer come from there.
        url: The server's address; ``"ndif"`` is the address in nnsight's configuration.
        api_key: The key; by default ``NDIF_API_KEY``, or what ``nnsight login`` stored.
        timeout: Seconds that a request may take; by default 600.
        tokenizer: A tokenizer, or where to load it from.
        family: A row for an unknown architecture.
        transport: What carries jobs, instead of a connection to ``url``.
        **options: ``revision``, ``attn_implementation`` and other options for the configuration.

    Returns:
        The model. Its parameters are on torch's meta device.

    Raises:
        ModelError: There is no such checkpoint, or its architecture is not known.
        RemoteError: The server does not answer, or refuses the key.
    """
    import nnsight
    from nnsight.schema.config import CONFIG

    nnsight.register("whence")
    where = locate(name)
    found = chosen_tokenizer(tokenizer, where, options)
    hf = _skeleton(where, name, options)
    arch = architecture(hf, family=family)
    if transport is None:
        key = api_key or os.environ.get("NDIF_API_KEY") or CONFIG.API.APIKEY or ""
        address = (CONFIG.API.HOST or "") if url == NDIF else url
        transport = Connection(address, key, DEFAULT_TIMEOUT if timeout is None else timeout)
    rename, envoys = nnsight_names(arch)
    plain = _wrapped(_skeleton(where, name, options), found)
    server = Server(transport, _model_key(name, hf, options, transport), plain)
    trusted = server.trusted()
    server.compare_versions()
    info = {
        "revision": options.get("revision") or getattr(hf.config, "_commit_hash", None),
        "class": type(hf).__name__,
        "attention": getattr(hf.config, "_attn_implementation", None),
        "quantisation": None,
        "server": transport.url,
    }
    return Model(
        _wrapped(hf, found, rename=rename, envoys=envoys),
        found,
        arch,
        name,
        place=NDIF,
        provides=PLACES["ndif" if trusted else "ndif without trust"],
        lacks={} if trusted else {Need.GRADIENTS: _NO_GRADIENTS},
        info=info,
        remote=server,
    )


def _skeleton(where: str, name: str, options: dict[str, Any]) -> Any:
    """The model without weights, with the checkpoint's settings of generation."""
    hf = skeleton(find_config(where, name, options), name, options)
    adopt_generation_settings(hf, where, options)
    return hf


def _wrapped(hf: Any, tokenizer: Any, **names: Any) -> Any:
    """The nnsight model that the server has too: with a pipeline around decoder-only models."""
    from nnsight import TransformersModel
    from nnsight.modeling.huggingface import HuggingFaceModel

    if hf.config.is_encoder_decoder:
        return HuggingFaceModel(hf, **names)
    if tokenizer is None:
        raise ModelError("a server runs decoder-only models with their tokenizer; pass tokenizer=.")
    # nnsight sets up the tokenizer for itself.
    return TransformersModel(hf, task="text-generation", tokenizer=copy.deepcopy(tokenizer), device="meta", **names)


def _model_key(name: str, hf: Any, options: dict[str, Any], transport: Transport) -> str:
    """The model's name on the wire: as the server lists it, or as nnsight makes it."""
    own = os.path.realpath(name) if Path(name).is_dir() else name
    for one in (transport.get("/status").get("deployments") or {}).values():
        served = one.get("repo_id") or ""
        same = served == name or (Path(served).is_dir() and os.path.realpath(served) == own)
        if same and (one.get("revision") or "main") == (options.get("revision") or one.get("revision") or "main"):
            return one["model_key"]
    data: dict[str, Any] = {"repo_id": name, "revision": options.get("revision")}
    if options.get("trust_remote_code"):
        data["trust_remote_code"] = True
    if hf.config.is_encoder_decoder:
        return f"nnsight.modeling.huggingface.HuggingFaceModel:{json.dumps(data)}"
    return f"nnsight.modeling.transformers.TransformersModel:{json.dumps({**data, 'task': 'text-generation'})}"
