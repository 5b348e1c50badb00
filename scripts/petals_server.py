"""A server of Petals 2.2.0.post1 (2023) on today's hivemind and torch, as ``scripts/petals_swarm.sh`` installs them.

Usage: python petals_server.py ARGUMENT...      (those of ``petals.cli.run_server``)

Nothing of Petals is changed on disk. It stays on this machine (with ``--host_maddrs /ip4/127.0.0.1/...``), asks
nobody for a newer version, and ends with whoever started it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

# Where hivemind 1.1.12 has what Petals takes from ``hivemind`` itself.
_MOVED = {
    "hivemind.p2p": ("P2P", "P2PContext", "PeerID"),
    "hivemind.utils": (
        "MAX_DHT_TIME_DISCREPANCY_SECONDS",
        "MSGPackSerializer",
        "TimedStorage",
        "get_dht_time",
        "get_logger",
    ),
    "hivemind.compression": ("deserialize_tensor_stream", "deserialize_torch_tensor", "serialize_torch_tensor"),
    "hivemind.utils.asyncio": ("anext",),
    "hivemind.utils.nested": ("nested_compare", "nested_flatten", "nested_pack"),
    "hivemind.utils.tensor_descr": ("BatchTensorDescriptor", "TensorDescriptor"),
}
_TICK = 0.5


def put_names_back() -> None:
    """Give ``hivemind`` the names that it had when Petals was written."""
    from importlib import import_module

    hivemind = import_module("hivemind")
    for module, names in _MOVED.items():
        home = import_module(module)
        for name in names:
            if not hasattr(hivemind, name):
                setattr(hivemind, name, getattr(home, name))
    hivemind.compression = import_module("hivemind.compression")  # pyright: ignore[reportAttributeAccessIssue]


def stay_here() -> None:
    """Keep libp2p from asking routers for a port, and strangers for how they see this machine."""
    from importlib import import_module

    kind: Any = import_module("hivemind.p2p").P2P
    create = kind.create.__func__

    async def create_quietly(cls: type, *args: Any, **options: Any) -> Any:
        return await create(cls, *args, **{**options, "nat_port_map": False, "auto_nat": False})

    kind.create = classmethod(create_quietly)


def stop_on_signals() -> None:
    """Let a signal stop the server with all its processes.

    Petals does that on `KeyboardInterrupt` alone: other signals would leave its daemons behind, and a shell lets
    what it starts in the background ignore SIGINT.
    """
    main = os.getpid()

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        if os.getpid() != main:
            os._exit(128 + number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def end_with_parent() -> None:
    """Stop when the process that started this one is gone, even if it was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_TICK)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main() -> int | None:
    """Run the server until it is stopped."""
    stop_on_signals()
    end_with_parent()
    put_names_back()
    stay_here()
    from petals.cli import run_server  # pyright: ignore[reportMissingImports]

    # It would look for a newer version on the package index.
    run_server.validate_version = lambda: None
    return run_server.main()


if __name__ == "__main__":
    sys.exit(main())
