"""`load`: from a name, a folder or a model in memory to a `Model`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from whence.core.errors import InputError, ModelError, UnsupportedError, unknown_name
from whence.models import bundled
from whence.models.model import Model

DTYPES = ("auto", "float32", "float64", "float16", "bfloat16")
_TOKENIZER_FILES = ("tokenizer*", "*.spm", "spiece.model", "sentencepiece*", "vocab*", "merges.txt")
DEFAULT_MODEL = "whence/stories"


def load(
    name_or_path_or_model: Any = DEFAULT_MODEL,
    *,
    dtype: Any = None,
    device: Any = None,
    device_map: Any = None,
    tokenizer: Any = None,
    remote: str | None = None,
    family: Any = None,
    **from_pretrained: Any,
) -> Model:
    """Load a generative language model for attribution.

    Args:
        name_or_path_or_model: A Hugging Face hub id, a local folder, the name of a bundled model
            (``"whence/stories"``, ``"whence/en-it"``), or a transformers model in memory (which is put
            into evaluation mode, and otherwise left as it is).
        dtype: ``"float32"``, ``"float64"``, ``"bfloat16"``, ``"float16"``, ``"auto"`` (the
            checkpoint's), or a torch dtype. By default the checkpoint's on an accelerator, and float32 on
            a CPU, where half precision is many times slower.
        device: Such as ``"cpu"`` or ``"cuda:1"``; by default a GPU if there is one.
        device_map: Given to transformers, to spread a model over several devices.
        tokenizer: A tokenizer, or where to load it from; by default from the same place as the model.
        remote: A place other than here.
        family: A `whence.models.families.Family`, or a mapping with its fields, for an architecture that
            whence does not know.
        **from_pretrained: Further options of transformers' ``from_pretrained``, such as ``revision``.

    Returns:
        The model.

    Raises:
        ModelError: The checkpoint cannot be found or loaded, or its architecture is not known.
        UnknownNameError: No bundled model or dtype of that name.
        UnsupportedError: The place is not supported.

    Example:
        >>> model = whence.load("whence/stories")
        >>> model.attribute("Once upon a time").show()
    """
    if remote is not None:
        raise UnsupportedError(f"remote={remote!r}: this version of whence runs models on this machine only.")
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
        if device is not None:
            hf.to(device)
    if isinstance(tokenizer, str | Path):
        tokenizer = _tokenizer(str(tokenizer), from_pretrained, required=True)
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
        "quantisation": None,
    }
    return Model(nnsight.NNsight(hf, rename=names, envoys=envoys), tokenizer, arch, name, info=info)


def _from_pretrained(name: str, dtype: Any, device: Any, device_map: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    where = name
    if name.startswith("whence/"):
        where = str(bundled.path(name))
    elif not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"{name}: there is no such folder.")
    if device is None and device_map is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kwargs = dict(options)
    kwargs["dtype"] = _dtype(dtype, on_cpu=device is not None and torch.device(device).type == "cpu")
    if device_map is not None:
        kwargs["device_map"] = device_map
    try:
        config = AutoConfig.from_pretrained(where, **_hub_options(options))
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with _quiet(name.startswith("whence/")):
            hf: Any = auto.from_pretrained(where, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{name} could not be loaded: {error}\nGive a Hugging Face hub id (with access to the hub), a "
            f"folder with a checkpoint, or a bundled model: {', '.join(f'whence/{one}' for one in bundled.NAMES)}."
        ) from error
    if device_map is None:
        hf.to(device)
    return hf, _tokenizer(where, options, required=False)


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


def _tokenizer(where: str, options: dict[str, Any], *, required: bool) -> Any:
    from transformers import AutoTokenizer

    folder = Path(where)
    # Without any of its files, transformers makes up an empty tokenizer, or fails in one of many ways.
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        if required:
            raise ModelError(f"no tokenizer could be loaded from {where}: the folder has none of its files.")
        return None
    try:
        return AutoTokenizer.from_pretrained(where, **_hub_options(options))
    except OSError as error:
        if required:
            raise ModelError(f"no tokenizer could be loaded from {where}: {error}") from error
        return None
    except (ValueError, KeyError, TypeError, ImportError, AssertionError) as error:
        raise ModelError(
            f"the tokenizer in {where} could not be loaded: {error}. Pass tokenizer= with one of your own."
        ) from error


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    hub = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "subfolder")
    return {key: value for key, value in options.items() if key in hub}


def _dtype(dtype: Any, *, on_cpu: bool) -> Any:
    import torch

    if dtype is None:
        return torch.float32 if on_cpu else "auto"
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise unknown_name("dtype", str(dtype), DTYPES)
    return "auto" if dtype == "auto" else getattr(torch, dtype)
