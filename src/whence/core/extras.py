"""Libraries that only some users need: imported when asked for, with the command that installs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from whence.core.errors import UnsupportedError


def require(library: str, extra: str) -> Any:
    """Import an optional library.

    Args:
        library: The module to import.
        extra: The extra of whence that brings it.

    Returns:
        The module.

    Raises:
        UnsupportedError: It is not installed; the message has the command that installs it.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise UnsupportedError(f"{library} is not installed: pip install 'whence[{extra}]'") from error
