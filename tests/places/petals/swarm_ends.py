"""Connects to a swarm in child processes that end in every way a process can; prints each one's helper.

Usage: python swarm_ends.py ADDRESS PREFIX
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

from whence.models.petals.hive import hivemind
from whence.models.petals.swarm import Swarm

WAYS = ("return", "exit", "exception", "SIGINT", "SIGTERM", "SIGKILL", "_exit", "fork")


def end(way: str, address: str, prefix: str) -> None:
    """Connect, tell its process id, and end."""
    swarm = Swarm([address], prefix, 2)
    swarm.forward(torch.zeros(1, 3, 16), 0)
    sys.stdout.write(f"{way} {swarm.daemon_pid}\n")
    sys.stdout.flush()
    if way == "exit":
        sys.exit(3)
    if way == "exception":
        raise RuntimeError(way)
    if way == "_exit":
        os._exit(0)
    if way == "fork":
        if (child := os.fork()) == 0:
            # Runs the exit handlers of the parent, whose helper must outlive it.
            sys.exit(0)
        os.waitpid(child, 0)
        swarm.forward(torch.zeros(1, 3, 16), 0)
    if way.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, way))
        time.sleep(60)


def main() -> None:
    """All at once; hivemind is imported before, which takes longer than all the rest."""
    hivemind("dht.node")
    children = []
    for way in WAYS:
        if (child := os.fork()) == 0:
            end(way, *sys.argv[1:])
            return
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
