"""Provenance as plain data: what JSON can hold, kept read-only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from whence.core.errors import InputError


def plain(value: Any) -> Any:
    """Frozen plain data as the dicts, lists and scalars that JSON can write."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def frozen(value: Any, where: str) -> Any:
    """Plain data with read-only containers.

    Args:
        value: Texts, numbers, truth values and None, in mappings and sequences.
        where: Its name, for the error.

    Raises:
        InputError: Something in it is not plain data; the message says where it stands.
    """
    if isinstance(value, Mapping):
        if odd := [name for name in value if not isinstance(name, str)]:
            raise InputError(f"{where} has the key {odd[0]!r}; keys must be texts.")
        return MappingProxyType({name: frozen(item, f"{where}[{name!r}]") for name, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(frozen(item, f"{where}[{k}]") for k, item in enumerate(value))
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    raise InputError(f"{where} is a {type(value).__name__}; provenance holds plain data only.")


def listed(values: np.ndarray) -> list[Any]:
    """Nested lists; None for NaN, text for infinity."""

    def cell(value: Any) -> Any:
        if isinstance(value, list):
            return [cell(item) for item in value]
        return None if math.isnan(value) else plain(value)

    return cell(values.tolist())
