"""A server of Petals' protocol in this process, over real sockets, and the ways in which a server fails.

Not Petals' code: the protocol as observed (``tests/places/test_petals_swarm.py`` runs against the real one).
Importing this imports hivemind.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from whence.models.petals.hive import hivemind

runtime_pb2 = hivemind("proto.runtime_pb2")
P2P = hivemind("p2p").P2P
P2PContext = hivemind("p2p").P2PContext
ServicerBase = hivemind("p2p").ServicerBase
compression = hivemind("compression")
streaming = hivemind("utils.streaming")
dumps = hivemind("utils.serializer").MSGPackSerializer.dumps

ONLINE = 2
CHUNK = 1 << 20


class _Reached(Exception):
    """The first block is about to run."""


class Blocks:
    """Runs blocks of a transformers model, with the arguments that the whole model gives them.

    Args:
        hf: The model.
        path: Where its blocks are.
    """

    def __init__(self, hf: Any, path: str) -> None:
        self.base = hf.base_model
        self.blocks = hf.get_submodule(path)
        self.lock = threading.Lock()

    def __call__(self, hidden: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
        args, kwargs = self.arguments(hidden.detach())
        for number in numbers:
            out = self.blocks[number](hidden, *args, **kwargs)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden

    def arguments(self, hidden: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model gives a block beside the residual stream: masks and positions, counted from zero."""
        seen: list[Any] = []

        def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs.pop("hidden_states", None)
            seen.extend((args[1:], kwargs))
            raise _Reached

        with self.lock, torch.no_grad():
            handle = self.blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
            with suppress(_Reached):
                self.base(inputs_embeds=torch.zeros_like(hidden), use_cache=False)
            handle.remove()
        return seen[0], seen[1]


class TransformerConnectionHandler(ServicerBase):  # the class's name is part of the protocol
    """Answers requests.

    Attributes:
        log: For every request its kind, its blocks and the shape of its input.
        most: Tokens that it takes in one request.
        before: Called before a request is worked on.
        frozen: Whether requests wait and are not answered.
    """

    def __init__(self, run: Callable[..., torch.Tensor], names: Sequence[str]) -> None:
        self.run = run
        self.names = set(names)
        self.log: list[tuple[str, list[int], tuple[int, ...]]] = []
        self.most = 8192
        self.before: Callable[[str], None] = lambda kind: None
        self.frozen = False

    def work(self, kind: str, uid: str, tensors: list[torch.Tensor]) -> Any:
        names = uid.split(" ")
        if not set(names) <= self.names:
            raise RuntimeError(f"Remote peer does not serve {uid}")
        hidden, *more = tensors
        numbers = [int(name.rpartition(".")[2]) for name in names]
        self.log.append((kind, numbers, tuple(hidden.shape)))
        self.before(kind)
        assert len(more) == (1 if kind == "forward" else 2), "the tensor of deep prompts is missing"
        if hidden.shape[0] * hidden.shape[1] > self.most:
            raise ValueError("Task size greater than max_batch_size, it can't be processed")
        if kind == "forward":
            with torch.no_grad():
                out = self.run(hidden, numbers)
        else:
            with torch.enable_grad():
                hidden = hidden.detach().requires_grad_(True)
                (out,) = torch.autograd.grad(self.run(hidden, numbers), hidden, more[0])
        return compression.serialize_torch_tensor(out.detach())

    async def answer(self, kind: str, uid: str, tensors: list[torch.Tensor]) -> Any:
        while self.frozen:
            await asyncio.sleep(0.05)
        return await asyncio.get_running_loop().run_in_executor(None, self.work, kind, uid, tensors)

    async def unary(self, kind: str, request: Any) -> Any:
        tensors = [compression.deserialize_torch_tensor(one) for one in request.tensors]
        return runtime_pb2.ExpertResponse(tensors=[await self.answer(kind, request.uid, tensors)])

    async def stream(self, kind: str, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        names: list[str] = []

        async def parts() -> AsyncIterator[Any]:
            async for request in requests:
                names.append(request.uid)
                yield request.tensors

        tensors = await compression.deserialize_tensor_stream(parts())
        for part in streaming.split_for_streaming(await self.answer(kind, names[0], tensors), CHUNK):
            yield runtime_pb2.ExpertResponse(tensors=[part])

    async def rpc_forward(
        self, request: runtime_pb2.ExpertRequest, context: P2PContext
    ) -> runtime_pb2.ExpertResponse:
        return await self.unary("forward", request)

    async def rpc_backward(
        self, request: runtime_pb2.ExpertRequest, context: P2PContext
    ) -> runtime_pb2.ExpertResponse:
        return await self.unary("backward", request)

    async def rpc_forward_stream(
        self, requests: AsyncIterator[runtime_pb2.ExpertRequest], context: P2PContext
    ) -> AsyncIterator[runtime_pb2.ExpertResponse]:
        async for one in self.stream("forward", requests):
            yield one

    async def rpc_backward_stream(
        self, requests: AsyncIterator[runtime_pb2.ExpertRequest], context: P2PContext
    ) -> AsyncIterator[runtime_pb2.ExpertResponse]:
        async for one in self.stream("backward", requests):
            yield one


class PetalsServer:
    """A running server of some blocks.

    Args:
        hf: A model that has them.
        path: Where they are in it.
        blocks: Their numbers.
        prefix: What the swarm calls the model.
        peers: Addresses of other servers of the swarm.
        identity: A file with the server's key, made if it is not there; with the same one and the same port, a
            server is the same peer again.
        port: The port; 0 for any.
        **said: What to say of itself, instead of the usual.

    Attributes:
        address: Its address.
        handler: What answers requests.
    """

    def __init__(
        self,
        hf: Any,
        path: str,
        blocks: Sequence[int],
        prefix: str,
        peers: Sequence[str] = (),
        *,
        identity: Path | None = None,
        port: int = 0,
        **said: Any,
    ) -> None:
        names = [f"{prefix}.{number}" for number in blocks]
        self.handler = TransformerConnectionHandler(Blocks(hf, path), names)
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(lambda loop, context: None)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.p2p: Any = None
        self.node: Any = None
        self.address: str = self._run(self._start(names, list(peers), identity, port))
        more = {"start_block": min(blocks), "end_block": max(blocks) + 1, "version": "2.2.0", "torch_dtype": "float32"}
        self._run(self._announce(names, {**more, **said}))

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def _start(self, names: list[str], peers: list[str], identity: Path | None, port: int) -> str:
        self.p2p = await P2P.create(
            initial_peers=peers,
            host_maddrs=[f"/ip4/127.0.0.1/tcp/{port}"],
            identity_path=None if identity is None else str(identity),
            nat_port_map=False,
            auto_nat=False,
            use_relay=False,
        )
        self.node = await hivemind("dht.node").DHTNode.create(p2p=self.p2p, initial_peers=peers)
        await self.handler.add_p2p_handlers(self.p2p)
        return str((await self.p2p.get_visible_maddrs())[0])

    async def _announce(self, names: list[str], more: dict[str, Any]) -> None:
        me, until = self.p2p.peer_id.to_base58(), hivemind("utils").get_dht_time() + 3600
        record = (ONLINE, 1.0, more)
        await self.node.store_many(names, [record] * len(names), until, subkeys=[me] * len(names))

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.address.split("/tcp/")[1].split("/")[0])

    def kill(self) -> None:
        """End its daemon as a crash would."""
        with suppress(ProcessLookupError):
            os.kill(self.p2p._child.pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop it. May be called again."""
        if self.loop.is_closed():
            return
        with suppress(Exception):
            self._run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        self.loop.close()

    async def _stop(self) -> None:
        self.handler.frozen = False
        for one in (self.node, self.p2p):
            with suppress(Exception):
                await asyncio.wait_for(one.shutdown(), 5)
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()
