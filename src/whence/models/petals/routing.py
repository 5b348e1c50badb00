"""Who holds which block, and whom to ask: pure bookkeeping over what the swarm's table says."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Petals' ServerState.ONLINE; smaller numbers are servers that join or leave.
_ONLINE = 2
_PAUSE = 15.0
_LONGEST_PAUSE = 600.0


@dataclass(frozen=True)
class Holder:
    """A server that holds a block.

    Attributes:
        peer: Its peer id in base58.
        throughput: What it says about its speed.
        dtype: What it computes the block in, such as ``"bfloat16"``; None if it does not say.
        quantisation: How its weights are quantised, such as ``"nf4"``, or None.
    """

    peer: str
    throughput: float = 1.0
    dtype: str | None = None
    quantisation: str | None = None


def read_holders(records: Mapping[int, Mapping[str, Any]]) -> dict[int, tuple[Holder, ...]]:
    """The servers that are online, from the swarm's table.

    Args:
        records: For each block, what every server says about itself: its state, its throughput, and a mapping
            with more, as Petals writes it. What another program wrote there is passed over.

    Returns:
        The holders of each block.
    """
    found = {}
    for block, servers in records.items():
        holders = []
        for peer, said in servers.items():
            if not isinstance(said, list | tuple) or len(said) < 2 or said[0] != _ONLINE:
                continue
            more = said[2] if len(said) > 2 and isinstance(said[2], Mapping) else {}
            quantisation = more.get("quant_type")
            holders.append(
                Holder(
                    peer=str(peer),
                    throughput=float(said[1]),
                    dtype=more.get("torch_dtype"),
                    quantisation=None if quantisation in (None, "none") else str(quantisation),
                )
            )
        found[block] = tuple(holders)
    return found


class Routes:
    """Chooses a server for each block, and remembers which ones failed.

    A client keeps to one server per block as long as that answers, so that equal inputs have equal results;
    different clients spread over the servers in proportion to their throughput (weighted rendezvous hashing).

    Args:
        seed: Tells clients apart.
        clock: Seconds that only go forward.
    """

    def __init__(self, seed: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.holders: dict[int, tuple[Holder, ...]] = {}
        self._seed = seed
        self._clock = clock
        self._updated = -math.inf
        self._until: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    @property
    def age(self) -> float:
        """Seconds since the table was read."""
        return self._clock() - self._updated

    def update(self, holders: dict[int, tuple[Holder, ...]]) -> None:
        """Take over a table that was just read."""
        self.holders = holders
        self._updated = self._clock()

    def choose(self, block: int) -> Holder | None:
        """The server to ask for a block: one that did not fail lately, if there is any."""
        held = self.holders.get(block, ())
        return min(self._fresh(block) or held, key=self._rank, default=None)

    def has_fresh(self, block: int) -> bool:
        """Whether a server holds the block that did not fail lately."""
        return bool(self._fresh(block))

    def failed(self, peer: str, at_least: float = 0.0) -> None:
        """Avoid a server for a while, longer each time it fails again.

        Args:
            peer: The server.
            at_least: Seconds to avoid it at least.
        """
        count = self._failures.get(peer, 0)
        self._failures[peer] = count + 1
        pause = min(_PAUSE * 2**count, _LONGEST_PAUSE)
        self._until[peer] = self._clock() + max(pause, at_least)

    def worked(self, peer: str) -> None:
        """Forget a server's failures."""
        self._failures.pop(peer, None)
        self._until.pop(peer, None)

    def _fresh(self, block: int) -> tuple[Holder, ...]:
        now = self._clock()
        return tuple(one for one in self.holders.get(block, ()) if self._until.get(one.peer, -math.inf) <= now)

    def _rank(self, holder: Holder) -> float:
        digest = hashlib.sha256(f"{self._seed}/{holder.peer}".encode()).digest()
        uniform = (int.from_bytes(digest[:8], "big") + 1) / (2**64 + 1)
        return -math.log(uniform) / max(holder.throughput, 1e-9)


def describe(holders: Mapping[int, tuple[Holder, ...]]) -> str:
    """The blocks that have servers, as ranges: ``"0-11, 18-23"``."""
    held = sorted(block for block, servers in holders.items() if servers)
    ranges: list[list[int]] = []
    for block in held:
        if ranges and ranges[-1][1] == block - 1:
            ranges[-1][1] = block
        else:
            ranges.append([block, block])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges) or "none"
