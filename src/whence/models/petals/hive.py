"""hivemind, imported when a swarm is first used, and without its effects on the rest of the process."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from importlib import import_module
from typing import Any

from whence.core.extras import require

_importing = threading.Lock()


def hivemind(module: str) -> Any:
    """A module of hivemind.

    Args:
        module: Its name below ``hivemind``, such as ``"dht.node"``.

    Returns:
        The module.

    Raises:
        UnsupportedError: hivemind is not installed.
    """
    found = sys.modules.get(f"hivemind.{module}")
    # A module that another thread is still importing is in the table too, but not its parent's attribute.
    if found is not None and not _importing.locked():
        return found
    with _importing:
        if "hivemind" not in sys.modules:
            _import_alone()
        return require(f"hivemind.{module}", "petals")


def _import_alone() -> None:
    """Import hivemind, and undo what it does to logging, to warnings and to torch.

    It calls the level WARNING "WARN", hangs a handler of its own into the tree of loggers, adds filters of
    warnings, and lets torch share tensors between processes through files.
    """
    sharing = import_module("torch.multiprocessing")
    strategy, warning = sharing.get_sharing_strategy(), logging.getLevelName(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            require("hivemind", "petals")
            import_module("hivemind.utils.logging").use_hivemind_log_handler("nowhere")
    finally:
        logging.addLevelName(logging.WARNING, warning)
        sharing.set_sharing_strategy(strategy)
