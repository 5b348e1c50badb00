"""What a server is started with, checked."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any


class Settings:
    """What a server is started with.

    Args:
        path: Folder or hub id of the checkpoint.
        name: What clients call it; the path unless given.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        keys: Keys of clients, with ``email`` and ``tags``; None asks for no key.
        dtype: Precision of the weights; None is float32 on a CPU and the checkpoint's elsewhere.
        device: Such as ``"cuda:0"``; None takes a GPU if there is one.
        attention: The attention implementation, or None for the model's own choice.
        timeout: Seconds that a job may run.
        request_mb: Largest request, in MiB.
        result_mb: Largest result, in MiB.
        queue: Jobs that may wait.

    Raises:
        ValueError: An address that others can reach, without keys.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str | None = None,
        host: str = "127.0.0.1",
        port: int = 8077,
        keys: dict[str, Any] | None = None,
        dtype: str | None = None,
        device: str | None = None,
        attention: str | None = None,
        timeout: float = 600.0,
        request_mb: float = 64.0,
        result_mb: float = 1024.0,
        queue: int = 16,
    ) -> None:
        if keys is None and not _is_loopback(host):
            raise ValueError(
                f"{host} can be reached from other machines, and clients run code here: give keys (--keys FILE), or "
                "listen on 127.0.0.1."
            )
        self.path, self.name, self.host, self.port, self.keys = path, name or path, host, port, keys
        self.dtype, self.device, self.attention = dtype, device, attention
        self.timeout, self.queue = timeout, queue
        self.request_bytes, self.result_bytes = int(request_mb * 2**20), int(result_mb * 2**20)


def read_keys(path: str | Path) -> dict[str, Any]:
    """Read a file of keys: ``{"KEY": {"email": "someone@example.org", "tags": []}}``.

    Raises:
        ValueError: It is something else, or a key is shorter than 16 characters.
    """
    keys = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(keys, dict) or not keys or not all(isinstance(one, dict) for one in keys.values()):
        raise ValueError(f'{path}: keys are written as {{"KEY": {{"email": "someone@example.org", "tags": []}}}}.')
    if any(len(key) < 16 for key in keys):
        raise ValueError(f"{path}: a key has at least 16 characters.")
    return keys


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
