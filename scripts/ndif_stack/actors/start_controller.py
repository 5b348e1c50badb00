"""Start NDIF's controller as soon as Ray is there, with the slow imports done while Ray starts."""

from __future__ import annotations

import os
import socket
import sys
import time

import ray
from ndif.services.ray.deployments.controller.controller import app


def main() -> None:
    """Wait for the address in RAY_ADDRESS, then do what NDIF's own start-up does."""
    host, port = os.environ["RAY_ADDRESS"].rsplit(":", 1)
    until = time.monotonic() + float(sys.argv[1])
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            # Ray listens before it can be joined.
            ray.init(address=os.environ["RAY_ADDRESS"], namespace="NDIF", logging_level="error")
            break
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    app()


if __name__ == "__main__":
    main()
