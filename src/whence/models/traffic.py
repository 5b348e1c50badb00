"""What goes over the wire to a model that runs elsewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Traffic:
    """Requests, and the bytes of their payloads and results."""

    requests: int = 0
    sent: int = 0
    received: int = 0
