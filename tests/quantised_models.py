"""Models with 4-bit weights as Transformers alone loads them, and packed as bitsandbytes does on some CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from whence.models.checkpoints import auto_class


def quantised_by_transformers(folder: Path, **options: Any) -> Any:
    """A checkpoint with nf4 weights and products in float32, on the CPU, in evaluation mode.

    Args:
        folder: The checkpoint.
        **options: More of ``BitsAndBytesConfig``.
    """
    from transformers import AutoConfig, BitsAndBytesConfig

    own = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", **options)
    kind = auto_class(AutoConfig.from_pretrained(folder))
    return kind.from_pretrained(folder, quantization_config=own, dtype=torch.float32, device_map={"": "cpu"}).eval()


def layers(hf: Any) -> list[Any]:
    """The layers with 4-bit weights."""
    found = [module for module in hf.modules() if type(module).__name__ == "Linear4bit"]
    assert found
    return found


def dequantised(layer: Any) -> torch.Tensor:
    """The numbers that a layer's weights stand for."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def pack(hf: Any) -> None:
    """Do what the first pass in evaluation mode does on a CPU with AVX512-BF16."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    for layer in layers(hf):
        layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu(
            layer.weight.data, layer.weight.quant_state
        )
