"""Weights of 4 and 8 bits, through transformers' bitsandbytes configuration."""

from __future__ import annotations

import logging
from typing import Any

from whence.core.extras import require

FORMATS = ("nf4", "fp4", "int8")


def bitsandbytes_config(name: str, compute: Any) -> Any:
    """The configuration for one of `FORMATS`.

    Args:
        name: ``"nf4"`` or ``"fp4"`` (4 bits, Dettmers et al. 2023), or ``"int8"`` (8 bits with outliers in
            16, Dettmers et al. 2022).
        compute: The torch dtype that products are computed in.

    Returns:
        A ``BitsAndBytesConfig``.

    Raises:
        UnsupportedError: bitsandbytes or accelerate is not installed.
    """
    require_quantised()
    from transformers import BitsAndBytesConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=name, bnb_4bit_compute_dtype=compute)


def rows_interact(config: Any) -> bool:
    """Whether the rows of one pass influence each other.

    LLM.int8() keeps a column of the activations in 16 bits if it has an outlier in any row (and token) of the
    pass, so a row's result depends on its company.

    Args:
        config: The model's transformers configuration.

    Returns:
        True for 8-bit weights with a threshold for outliers, which is the usual setting.
    """
    told = _settings(config)
    return bool(told.get("load_in_8bit") and told.get("llm_int8_threshold", 6.0) > 0)


def quiet_casts() -> None:
    """Keep bitsandbytes from telling at every product of 8-bit weights that it casts its input."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_no_cast)


def _no_cast(record: logging.LogRecord) -> bool:
    return "inputs will be cast" not in record.getMessage()


def require_quantised() -> None:
    """Check that what loads quantised weights is installed.

    Raises:
        UnsupportedError: bitsandbytes or accelerate is not installed.
    """
    for library in ("accelerate", "bitsandbytes"):
        require(library, "quantized")


def quantisation(config: Any) -> str | None:
    """What a checkpoint's configuration says about how its weights are quantised: ``"nf4"``, ``"int8"``, ..."""
    told = _settings(config)
    if not told:
        return None
    if told.get("load_in_8bit"):
        return "int8"
    if told.get("load_in_4bit"):
        return str(told.get("bnb_4bit_quant_type", "fp4"))
    return str(getattr(told.get("quant_method"), "value", told.get("quant_method") or "unknown"))


def _settings(config: Any) -> dict[str, Any]:
    found = getattr(config, "quantization_config", None) or {}
    return found if isinstance(found, dict) else found.to_dict()


def compute_in(hf: Any, dtype: Any) -> None:
    """Let 4-bit layers compute in a dtype of ours: a checkpoint says bfloat16, which a CPU does slowly.

    Args:
        hf: A model with bitsandbytes layers.
        dtype: The torch dtype.
    """
    for module in hf.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype
            module.compute_type_is_set = True
