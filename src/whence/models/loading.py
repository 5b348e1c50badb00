"""`load`: from a name, a folder or a model in memory to a `Model`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whence.core.errors import InputError, RemoteError, unknown_name
from whence.models.checkpoints import auto_class, find_config, find_tokenizer, locate, unloadable
from whence.models.model import Model
from whence.models.quantised import (
    FORMATS,
    bitsandbytes_config,
    compute_in,
    keep_unpacked,
    quantisation,
    quiet_casts,
    require_quantised,
)

FLOATS = ("auto", "float32", "float64", "float16", "bfloat16")
PLACES = ("ndif", "petals")
DEFAULT_MODEL = "whence/stories"


def load(
    name_or_path_or_model: Any = DEFAULT_MODEL,
    *,
    dtype: Any = None,
    device: Any = None,
    device_map: Any = None,
    tokenizer: Any = None,
    remote: str | None = None,
    api_key: str | None = None,
    peers: Sequence[str] | None = None,
    timeout: float | None = None,
    family: Any = None,
    **from_pretrained: Any,
) -> Model:
    """Load a generative language model for attribution, or the skeleton of one that runs elsewhere.

    Args:
        name_or_path_or_model: A Hugging Face hub id, a local folder, the name of a bundled model
            (``"whence/stories"``, ``"whence/en-it"``), or a transformers model in memory (which is put
            into evaluation mode, its 4-bit weights are kept in the layout that has gradients, and otherwise it
            is left as it is).
        dtype: ``"float32"``, ``"float64"``, ``"bfloat16"``, ``"float16"``, ``"auto"`` (the
            checkpoint's), or a torch dtype. By default the checkpoint's on an accelerator, and float32 on
            a CPU, where half precision is many times slower. ``"nf4"``, ``"fp4"`` and ``"int8"`` quantise
            with bitsandbytes (``pip install 'whence[quantized]'``); for other settings give
            ``quantization_config=BitsAndBytesConfig(...)``.
        device: Such as ``"cpu"`` or ``"cuda:1"``; by default a GPU if there is one.
        device_map: Given to transformers, to spread a model over several devices.
        tokenizer: A tokenizer, or where to load it from; by default from the same place as the model.
        remote: A place other than here. ``"ndif"``, or the address of a server that speaks its protocol
            (``whence serve-model`` starts one); ``"petals"`` for a Petals swarm. No weights are loaded here,
            and of a Petals model only embeddings and head.
        api_key: Key for NDIF; by default the environment variable ``NDIF_API_KEY``.
        peers: Addresses of a Petals swarm: ``"/ip4/.../p2p/..."``.
        timeout: Seconds that a request to another place may take; by default 600. For Petals, that one server
            may take for one request; by default 180.
        family: A `whence.models.families.Family`, or a mapping with its fields, for an architecture that
            whence does not know.
        **from_pretrained: Further options of transformers' ``from_pretrained``, such as ``revision``; for
            Petals also ``dht_prefix``.

    Returns:
        The model.

    Raises:
        ModelError: The checkpoint cannot be found or loaded, or its architecture is not known.
        UnknownNameError: No bundled model, dtype or place of that name.
        InputError: An option that does not apply here.
        RemoteError: The place does not answer.
        UnsupportedError: A library that is needed is not installed.

    Examples:
        >>> model = whence.load("whence/stories")
        >>> model.attribute("Once upon a time").show()
    """
    if remote is not None:
        given = {"dtype": dtype if remote != "petals" else None, "device": device, "device_map": device_map}
        if unused := [key for key, value in given.items() if value is not None]:
            raise InputError(f"{', '.join(unused)}: the place decides that, not the client; leave it out.")
        options = {"tokenizer": tokenizer, "timeout": timeout, "family": family, **from_pretrained}
        return _elsewhere(name_or_path_or_model, remote, {"api_key": api_key, "peers": peers, "dtype": dtype}, options)
    elsewhere = {"api_key": api_key, "peers": peers, "timeout": timeout}
    if unused := [key for key, value in elsewhere.items() if value is not None]:
        raise InputError(f"{', '.join(unused)}: only for a model that runs elsewhere; give remote= as well.")
    if isinstance(name_or_path_or_model, str | Path):
        name = str(name_or_path_or_model)
        hf, found = _from_pretrained(name, dtype, device, device_map, from_pretrained)
        if tokenizer is None:
            tokenizer = found
    else:
        hf = name_or_path_or_model
        if not hasattr(hf, "config") or not hasattr(hf, "generate"):
            raise InputError(
                f"whence.load takes a name, a folder or a transformers model that generates, not {type(hf).__name__}."
            )
        given = {"dtype": dtype, "device_map": device_map, **from_pretrained}
        unused = [key for key, value in given.items() if value is not None]
        if unused:
            raise InputError(
                f"{', '.join(unused)}: options for loading a checkpoint do not apply to a model in memory."
            )
        name = getattr(hf.config, "_name_or_path", "") or type(hf).__name__
        # Before it moves: packed weights that are moved are damaged.
        keep_unpacked(hf)
        if device is not None:
            hf.to(device)
    if isinstance(tokenizer, str | Path):
        tokenizer = find_tokenizer(str(tokenizer), from_pretrained, required=True)
    return wrap(hf.eval(), tokenizer, name, family)


def wrap(hf: Any, tokenizer: Any, name: str, family: Any = None) -> Model:
    """Give a transformers model its names.

    Args:
        hf: A transformers model.
        tokenizer: Its tokenizer, or None.
        name: What to call it.
        family: A row for an unknown architecture.

    Returns:
        The model.
    """
    # nnsight patches torch when imported, so it is loaded no earlier than needed.
    import nnsight

    from whence.models.components import architecture, nnsight_names

    arch = architecture(hf, family=family)
    rename, envoys = nnsight_names(arch)
    names: dict[Any, Any] = dict(rename)
    info = {
        "revision": getattr(hf.config, "_commit_hash", None),
        "class": type(hf).__name__,
        "attention": getattr(hf.config, "_attn_implementation", None),
        "dtype": str(hf.dtype).removeprefix("torch."),
        "quantisation": quantisation(hf.config),
    }
    return Model(nnsight.NNsight(hf, rename=names, envoys=envoys), tokenizer, arch, name, info=info)


def _elsewhere(name: Any, remote: str, place: dict[str, Any], options: dict[str, Any]) -> Model:
    if not isinstance(name, str | Path):
        raise InputError(f"remote= takes the name of a model that the place has, not {type(name).__name__}.")
    options = {key: value for key, value in options.items() if value is not None}
    if remote == "petals":
        if not place["peers"]:
            raise InputError("remote='petals' needs peers=[...]: addresses of the swarm, as its servers print them.")
        from whence.models.petals.loading import load_petals

        if place["dtype"] is not None:
            options["dtype"] = _dtype(place["dtype"], on_cpu=True)
        return load_petals(str(name), peers=place["peers"], **options)
    if place["peers"]:
        raise InputError("peers= are addresses of a Petals swarm; give remote='petals'.")
    if remote != "ndif" and not remote.startswith(("http://", "https://")):
        if any(sign in remote for sign in ":./"):
            raise RemoteError(f"remote={remote!r}: a server's address begins with http:// or https://.")
        raise unknown_name("place", remote, PLACES, "A server's address begins with http:// or https://.")
    from whence.models.ndif.loading import load_ndif

    return load_ndif(str(name), url=remote, api_key=place["api_key"], **options)


def _from_pretrained(name: str, dtype: Any, device: Any, device_map: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    import torch

    where = locate(name)
    if device is None and device_map is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    config = find_config(where, name, options)
    kwargs, quantised = dict(options), quantisation(config) is not None
    on_cpu = device is not None and torch.device(device).type == "cpu"
    if isinstance(dtype, str) and dtype in FORMATS:
        if "quantization_config" in options or quantised:
            raise InputError(f"dtype={dtype!r}: the weights are quantised already, as the checkpoint or you say.")
        wide = torch.float32 if on_cpu else getattr(config, "dtype", None) or torch.bfloat16
        kwargs |= {"quantization_config": bitsandbytes_config(dtype, wide), "dtype": wide}
    else:
        kwargs["dtype"] = _dtype(dtype, on_cpu=on_cpu)
    if quantised or kwargs.get("quantization_config") is not None:
        require_quantised()
        # Quantised weights are made on their device; they cannot be moved there later.
        kwargs["device_map"] = device_map if device_map is not None else {"": device}
    elif device_map is not None:
        kwargs["device_map"] = device_map
    try:
        with _quiet(name.startswith("whence/")):
            hf: Any = auto_class(config).from_pretrained(where, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise unloadable(name, error) from error
    # Nobody asks for gradients of weights, and without them fused attention kernels and less memory will do.
    hf.requires_grad_(False)
    keep_unpacked(hf)
    if "device_map" not in kwargs:
        hf.to(device)
    if quantised and on_cpu:
        compute_in(hf, hf.dtype)
    if quantisation(hf.config) == "int8":
        quiet_casts()
    return hf, find_tokenizer(where, options, required=False)


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """No progress bar of transformers for models that load in an instant."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet and shown:
            logging.enable_progress_bar()


def _dtype(dtype: Any, *, on_cpu: bool) -> Any:
    import torch

    if dtype is None:
        return torch.float32 if on_cpu else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in FLOATS:
        raise unknown_name("dtype", str(dtype), (*FLOATS, *FORMATS))
    return "auto" if dtype == "auto" else getattr(torch, dtype)
