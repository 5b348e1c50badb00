"""`Swarm`: forward and backward through single blocks that other processes hold, within bounded time."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import torch

from whence.core.errors import SwarmError
from whence.models.petals.helper import Helper
from whence.models.petals.routing import Holder, Routes, describe, read_holders
from whence.models.petals.wire import Kind, call
from whence.models.traffic import Traffic

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

DEFAULT_TIMEOUT = 180.0
# Seconds between attempts. The daemon dials a peer that did not answer again after 5, then 6, then 9 seconds.
_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0)
_TABLE_SECONDS = 60.0
_LOOKUP_SECONDS = 20.0
# As in Petals' own client; servers take 2048 tokens or more, unless they are told otherwise.
_TOKENS_PER_REQUEST = 1024
# Requests under way at the same time; a server computes one after the other, and each waits its turn.
_PARALLEL = 4


class _TooLargeError(Exception):
    """A server takes fewer tokens in one request."""


class Swarm:
    """The blocks of one model, wherever they are.

    Safe to use from several threads. Closed by `close`, when the last reference is gone, and at exit.

    Args:
        peers: Addresses of servers to begin with.
        prefix: What the names of the model's blocks begin with in the swarm.
        blocks: How many blocks the model has.
        timeout: Seconds that one server may take for one request. A request that is not answered in time goes
            to another server, and fails when there is none.

    Attributes:
        traffic: Requests and bytes so far.

    Raises:
        InputError: An address cannot be read.
        SwarmError: None of the peers answers.
        UnsupportedError: hivemind is not installed.
    """

    def __init__(self, peers: Sequence[str], prefix: str, blocks: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.prefix = prefix
        self.blocks = blocks
        self.timeout = timeout
        self.traffic = Traffic()
        self._limit = _TOKENS_PER_REQUEST
        self._routes = Routes(secrets.token_hex(8))
        self._looking = asyncio.Lock()
        self._turns = asyncio.Semaphore(_PARALLEL)
        self._helper = Helper(peers)

    def __repr__(self) -> str:
        return f"Swarm({self.prefix!r}, blocks={self.blocks})"

    @property
    def daemon_pid(self) -> int | None:
        """The process id of the helper daemon; None when there is none."""
        return self._helper.pid

    def holders(self) -> dict[int, tuple[Holder, ...]]:
        """Read the swarm's table until every block has a server, for a few seconds.

        Returns:
            The servers of each block.

        Raises:
            SwarmError: Some block has none.
        """
        return self._helper.run(self._all_held())

    def forward(self, hidden: Float[Tensor, "row position unit"], block: int) -> Float[Tensor, "row position unit"]:
        """Run a block.

        Args:
            hidden: What goes into it, without padding on the left.
            block: The block's number.

        Returns:
            What comes out.

        Raises:
            SwarmError: No server answered.
        """
        return self._helper.run(self._split("forward", block, (hidden,)))

    def backward(
        self, hidden: Float[Tensor, "row position unit"], grad: Float[Tensor, "row position unit"], block: int
    ) -> Float[Tensor, "row position unit"]:
        """The gradient of a block's input; the server runs the block again for it.

        Args:
            hidden: What goes into the block.
            grad: The gradient of what comes out.
            block: The block's number.

        Returns:
            The gradient of ``hidden``.

        Raises:
            SwarmError: No server answered.
        """
        return self._helper.run(self._split("backward", block, (hidden, grad)))

    def close(self) -> None:
        """Stop the helper daemon. May be called again."""
        self._helper.close()

    async def _split(self, kind: Kind, block: int, tensors: tuple[Tensor, ...]) -> Tensor:
        """All rows, in requests of no more tokens than a server takes."""
        rows = max(self._limit // tensors[0].shape[1], 1)
        parts = zip(*(one.split(rows) for one in tensors), strict=True)
        tasks = [asyncio.ensure_future(self._in_turn(kind, block, part)) for part in parts]
        try:
            return torch.cat(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _in_turn(self, kind: Kind, block: int, tensors: tuple[Tensor, ...]) -> Tensor:
        async with self._turns:
            return await self._part(kind, block, tensors)

    async def _part(self, kind: Kind, block: int, tensors: tuple[Tensor, ...]) -> Tensor:
        async def ask(holder: Holder) -> Tensor:
            p2p, _ = await self._helper.connection()
            async with asyncio.timeout(self.timeout):
                return await call(p2p, holder.peer, kind, f"{self.prefix}.{block}", tensors, self.traffic)

        try:
            return await self._attempts(kind, block, ask)
        except _TooLargeError as error:
            count, length = tensors[0].shape[:2]
            if count == 1:
                raise SwarmError(
                    f"a text of {length} tokens is more than the servers of block {block} take in one request "
                    f"({error}). Give a shorter text, or start them with a larger --max_batch_size.",
                    details=str(error),
                ) from error
            self._limit = min(self._limit, math.ceil(count / 2) * length)
            halves = zip(*(one.tensor_split(2) for one in tensors), strict=True)
            return torch.cat([await self._part(kind, block, half) for half in halves])

    async def _attempts(self, kind: Kind, block: int, ask: Callable[[Holder], Coroutine[Any, Any, Tensor]]) -> Tensor:
        """One answer, from whichever server gives it."""
        tried: list[str] = []
        error: Exception | None = None
        for pause in (0.0, *_PAUSES):
            if error is not None and not self._routes.has_fresh(block):
                await asyncio.sleep(pause)
            if error is not None or self._routes.age > _TABLE_SECONDS:
                await self._look_up()
            if isinstance(error, TimeoutError) and not self._routes.has_fresh(block):
                # Whoever let all the time pass once would most likely do so again.
                break
            holder = self._routes.choose(block)
            if holder is None:
                error = LookupError("no server has it")
                continue
            tried.append(f"...{holder.peer[-6:]}")
            try:
                answer = await ask(holder)
            except SwarmError:
                raise
            except Exception as caught:
                if "max_batch_size" in str(caught):
                    raise _TooLargeError(str(caught)) from caught
                error = caught
                self._routes.failed(holder.peer, self.timeout if isinstance(caught, TimeoutError) else 0.0)
            else:
                self._routes.worked(holder.peer)
                return answer
        if not tried:
            raise self._nobody(block)
        if isinstance(error, TimeoutError):
            found = f"no answer within {self.timeout:g} seconds"
        else:
            found = f"{type(error).__name__}: {error}".rstrip(": ")
        raise SwarmError(
            f"block {block} of {self.prefix!r}: its {kind} pass failed after {len(tried)} "
            f"{'attempt' if len(tried) == 1 else 'attempts'} (servers {', '.join(dict.fromkeys(tried))}); the last "
            f"one: {found}. See whether the block's servers are up and what their logs say, or raise timeout=.",
            details=repr(error),
        ) from error

    def _nobody(self, block: int) -> SwarmError:
        return SwarmError(
            f"no server of the swarm holds block {block} of {self.prefix!r} (with a server: blocks "
            f"{describe(self._routes.holders)} of {self.blocks}). Check dht_prefix, and that servers for all blocks "
            "are up."
        )

    async def _all_held(self) -> dict[int, tuple[Holder, ...]]:
        missing: list[int] = []
        for pause in (0.0, *_PAUSES):
            await asyncio.sleep(pause)
            await self._look_up()
            missing = [block for block in range(self.blocks) if not self._routes.holders.get(block)]
            if not missing:
                return self._routes.holders
        raise self._nobody(missing[0])

    async def _look_up(self) -> None:
        """Read the swarm's table, unless someone else just did."""
        asked = self._routes.age
        async with self._looking:
            if self._routes.age < asked:
                return
            _, node = await self._helper.connection()
            names = {f"{self.prefix}.{block}": block for block in range(self.blocks)}
            try:
                async with asyncio.timeout(min(self.timeout, _LOOKUP_SECONDS)):
                    found = await node.get_many(list(names), math.inf)
            except TimeoutError:
                # What was known before is the best there is.
                return
            records = {
                block: {peer: item.value for peer, item in found[name].value.items()}
                for name, block in names.items()
                if found.get(name) is not None and isinstance(found[name].value, dict)
            }
            self._routes.update(read_holders(records))
