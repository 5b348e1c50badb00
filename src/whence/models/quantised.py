"""Weights of 4 and 8 bits, through transformers' bitsandbytes configuration."""

from __future__ import annotations

import logging
from typing import Any

from whence.core.extras import require

FORMATS = ("nf4", "fp4", "int8")
# A 4-bit layer's switch, on where the CPU has AVX512-BF16.
_PACKS = "support_avx512bf16_for_cpu"


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


def keep_unpacked(hf: Any) -> None:
    """Keep 4-bit weights in the layout that has gradients, also on CPUs for which bitsandbytes has another.

    On a CPU with AVX512-BF16, a 4-bit layer in evaluation mode packs its weights the first time that its input
    asks for no gradient. From then on it computes in bfloat16, by a kernel with neither derivatives nor a rule
    for batches, and it does so only for some shapes. Each layer has a switch of its own, which is turned off
    here. A layer that has been packed before gets back its codes exactly, and its scales as packing has rounded
    them, to bfloat16.

    Args:
        hf: A model, with or without bitsandbytes layers, on any device.
    """
    for module in hf.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)
            _unpack(module.weight)


def _unpack(weight: Any) -> None:
    state = getattr(weight, "quant_state", None)
    if state is None:
        return
    if getattr(state, "packing_format_for_cpu", False):
        from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

        # Scales that were quantised themselves stay in full: to quantise them again would change them again.
        state.original_nested = False
        weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(weight.data, state)
    # bitsandbytes leaves them as packing arranged them, a column for each row of the weights. So it also does when
    # it saves a packed model, and the checkpoint has them so.
    if state.absmax.ndim == 2:
        state.absmax = state.absmax.T.float().flatten()


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
