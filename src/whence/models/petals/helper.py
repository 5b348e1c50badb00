"""The helper daemon of one client: libp2p's p2pd, a DHT node on it, and the thread whose loop drives both.

However this process ends, the daemon ends too: `Helper.close` (also run when the last reference is gone, and
at exit) stops it; where nothing of ours can run any more, it stops by itself when its connection breaks.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import signal
import threading
import weakref
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from whence.core.errors import InputError, SwarmError
from whence.models.petals.hive import hivemind

_LOG = logging.getLogger(__name__)
_TICK = 1.0
_STOP_SECONDS = 5.0
_LAST_WORDS = 0.05
_START_SECONDS = 30.0
# Only dialling out: no port is opened, no router is asked for one, and no relay is looked for.
_QUIET = {
    "nat_port_map": False,
    "auto_nat": False,
    "use_relay": False,
    "use_auto_relay": False,
    "no_listen": True,
    "dht_mode": "client",
}


@dataclass
class _Parts:
    """All that has to be stopped; it does not know the `Helper`, so that this one can be collected."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    owner: int = field(default_factory=os.getpid)
    p2p: Any = None
    node: Any = None
    closed: bool = False


class Helper:
    """One client's daemon.

    Args:
        peers: Addresses to begin with.

    Raises:
        InputError: An address cannot be read.
        SwarmError: None of the peers answers.
        UnsupportedError: hivemind is not installed.
    """

    def __init__(self, peers: Sequence[str]) -> None:
        self._peers = _addresses(peers)
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(_quietly)
        thread = threading.Thread(target=loop.run_forever, name="whence-petals", daemon=True)
        self._parts = _Parts(loop, thread)
        self._connecting = asyncio.Lock()
        self._finalizer = weakref.finalize(self, _close, self._parts)
        thread.start()
        try:
            self.run(self.connection())
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        """The daemon's process id; None when there is none."""
        child = None if self._parts.p2p is None else self._parts.p2p._child
        return None if child is None or child.returncode is not None else int(child.pid)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the helper's loop, and wait for it.

        Args:
            work: The coroutine; it bounds its own waiting.

        Returns:
            What it returns.

        Raises:
            SwarmError: The helper is closed, or was started by another process.
        """
        if self._parts.closed or not self._parts.thread.is_alive():
            work.close()
            why = "was closed" if self._parts.closed else "belongs to the process that this one was forked from"
            raise SwarmError(f"the connection to the swarm {why}; load the model again.")
        future = asyncio.run_coroutine_threadsafe(work, self._parts.loop)
        try:
            while not concurrent.futures.wait([future], timeout=_TICK).done:
                if not self._parts.thread.is_alive():
                    raise SwarmError("the connection to the swarm was closed in the middle of a request.")
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise SwarmError("the connection to the swarm was closed in the middle of a request.") from error
        finally:
            future.cancel()

    async def connection(self) -> tuple[Any, Any]:
        """The daemon and the DHT node; started anew where the daemon has ended.

        Returns:
            hivemind's ``P2P`` and ``DHTNode``.

        Raises:
            SwarmError: None of the peers answers.
        """
        async with self._connecting:
            if self.pid is None or self._parts.node is None:
                try:
                    async with asyncio.timeout(_START_SECONDS + _STOP_SECONDS):
                        await self._connect()
                except Exception as error:
                    raise SwarmError(
                        f"none of the peers answers ({type(error).__name__}: {error}). Check that the addresses are "
                        f"those that the servers print, and that they can be reached: {', '.join(self._peers)}",
                        details=repr(error),
                    ) from error
            return self._parts.p2p, self._parts.node

    async def _connect(self) -> None:
        await _disconnect(self._parts)
        self._parts.p2p = await hivemind("p2p").P2P.create(
            initial_peers=self._peers, startup_timeout=_START_SECONDS, **_QUIET
        )
        self._parts.node = await hivemind("dht.node").DHTNode.create(
            p2p=self._parts.p2p, initial_peers=self._peers, client_mode=True, num_workers=8, cache_locally=False
        )

    def close(self) -> None:
        """Stop the daemon and the thread; what is under way fails. May be called again."""
        self._finalizer()


def _addresses(peers: Sequence[str]) -> list[str]:
    kind = hivemind("utils.multiaddr").Multiaddr
    if isinstance(peers, str) or not peers:
        raise InputError(
            f"peers= is a list of addresses, such as ['/ip4/10.0.0.1/tcp/31337/p2p/Qm...'], not {peers!r}."
        )
    for peer in peers:
        try:
            kind(peer)["p2p"]
        except Exception as error:
            raise InputError(
                f"peers: {peer!r} is no address of a server, which reads '/ip4/10.0.0.1/tcp/31337/p2p/Qm...': {error}"
            ) from error
    return [str(peer) for peer in peers]


def _quietly(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _LOG.debug("%s", context.get("message"), exc_info=context.get("exception"))


def _close(parts: _Parts) -> None:
    if parts.closed or parts.owner != os.getpid():
        return
    parts.closed = True
    if threading.current_thread() is parts.thread:
        # The collector runs in any thread, also in the one that would have to be waited for.
        threading.Thread(target=_stop, args=(parts,), daemon=True).start()
    else:
        _stop(parts)


def _stop(parts: _Parts) -> None:
    future = asyncio.run_coroutine_threadsafe(_finish(parts), parts.loop)
    with suppress(Exception):
        future.result(2 * _STOP_SECONDS)
    child = None if parts.p2p is None else parts.p2p._child
    if child is not None and child.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
    parts.loop.call_soon_threadsafe(parts.loop.stop)
    parts.thread.join(_STOP_SECONDS)
    if not parts.thread.is_alive():
        parts.loop.close()


async def _finish(parts: _Parts) -> None:
    # Requests first: their retries would start the daemon again.
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await _disconnect(parts)
    await parts.loop.shutdown_asyncgens()
    # A daemon that could not start tells its end through the loop, too.
    await asyncio.sleep(_LAST_WORDS)


async def _disconnect(parts: _Parts) -> None:
    for one in (parts.node, parts.p2p):
        if one is not None:
            with suppress(Exception):
                async with asyncio.timeout(_STOP_SECONDS / 2):
                    await one.shutdown()
    parts.node = None
    if parts.p2p is not None:
        parts.p2p._child._transport.close()
