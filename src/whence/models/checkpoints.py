"""Where a checkpoint is, and what every place makes of it: configuration, skeleton and tokenizer."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from whence.core.errors import ModelError
from whence.models import bundled

_TOKENIZER_FILES = ("tokenizer*", "*.spm", "spiece.model", "sentencepiece*", "vocab*", "merges.txt")
_HUB = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code", "subfolder")


def locate(name: str) -> str:
    """The folder or hub id behind a name.

    Args:
        name: A bundled model's name, a folder, or a hub id.

    Returns:
        What transformers loads from.

    Raises:
        ModelError: It looks like a folder, and there is none.
        UnknownNameError: No bundled model of that name.
    """
    if name.startswith("whence/"):
        return str(bundled.path(name))
    if not Path(name).is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ModelError(f"{name}: there is no such folder.")
    return name


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of transformers' loading options that say where, not how."""
    return {key: value for key, value in options.items() if key in _HUB}


def unloadable(name: str, error: Exception) -> ModelError:
    """The error for a checkpoint that transformers cannot load."""
    return ModelError(
        f"{name} could not be loaded: {error}\nGive a Hugging Face hub id (with access to the hub), a "
        f"folder with a checkpoint, or a bundled model: {', '.join(f'whence/{one}' for one in bundled.NAMES)}."
    )


def find_config(where: str, name: str, options: dict[str, Any]) -> Any:
    """The transformers configuration of a checkpoint.

    Args:
        where: What `locate` found.
        name: What the user called it.
        options: Options of ``from_pretrained``.

    Returns:
        The configuration.

    Raises:
        ModelError: There is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(where, **hub_options(options))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise unloadable(name, error) from error


def auto_class(config: Any) -> Any:
    """The class of transformers that makes the model of a configuration."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def skeleton(config: Any, name: str, options: dict[str, Any]) -> Any:
    """A model without weights, on torch's meta device.

    Args:
        config: Its configuration.
        name: What the user called it.
        options: Options of ``from_pretrained``; those that choose code are heeded.

    Returns:
        The transformers model.

    Raises:
        ModelError: It cannot be built.
    """
    from nnsight.modeling.mixins.meta import MetaDevice

    chosen = {key: options[key] for key in ("attn_implementation", "trust_remote_code") if key in options}
    try:
        with MetaDevice():
            return auto_class(config).from_config(config, **chosen).eval()
    except (ValueError, ImportError, TypeError) as error:
        raise ModelError(f"{name}: its skeleton could not be built: {error}") from error


def adopt_generation_settings(hf: Any, where: str, options: dict[str, Any]) -> None:
    """Give a model that was not loaded in one piece the checkpoint's settings of generation.

    A checkpoint without settings of its own leaves those made from its configuration.
    """
    from transformers import GenerationConfig

    with suppress(OSError):
        hf.generation_config = GenerationConfig.from_pretrained(where, **hub_options(options))


def chosen_tokenizer(tokenizer: Any, where: str, options: dict[str, Any]) -> Any:
    """A tokenizer as the user gives it: the object, where to load it from, or None for the checkpoint's own.

    Raises:
        ModelError: It is to be loaded from somewhere, and cannot be.
    """
    if tokenizer is None or isinstance(tokenizer, str | Path):
        return find_tokenizer(str(tokenizer or where), options, required=tokenizer is not None)
    return tokenizer


def find_tokenizer(where: str, options: dict[str, Any], *, required: bool) -> Any:
    """The tokenizer of a checkpoint.

    Args:
        where: What `locate` found.
        options: Options of ``from_pretrained``.
        required: Whether its absence is an error.

    Returns:
        The tokenizer, or None.

    Raises:
        ModelError: It is required and absent, or present and broken.
    """
    from transformers import AutoTokenizer

    folder = Path(where)
    # Without any of its files, transformers makes up an empty tokenizer, or fails in one of many ways.
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        if required:
            raise ModelError(f"no tokenizer could be loaded from {where}: the folder has none of its files.")
        return None
    try:
        return AutoTokenizer.from_pretrained(where, **hub_options(options))
    except OSError as error:
        if required:
            raise ModelError(f"no tokenizer could be loaded from {where}: {error}") from error
        return None
    except (ValueError, KeyError, TypeError, ImportError, AssertionError) as error:
        raise ModelError(
            f"the tokenizer in {where} could not be loaded: {error}. Pass tokenizer= with one of your own."
        ) from error
