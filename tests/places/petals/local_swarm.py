"""A server that speaks Petals' protocol, for tests: blocks of a tiny model, in a thread of this process.

Not a line is Petals' own; it is the protocol as its servers were observed to speak it. What listens is a daemon
in a process of its own, on 127.0.0.1 alone, which tests kill and freeze.
"""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from whence.models.petals.hive import hivemind

_ONLINE = 2


class PetalsServer:
    """Serves blocks until it is closed.

    Args:
        hf: A transformers model; it is not changed.
        blocks: Which of its blocks.
        prefix: What the swarm calls the model.
        peers: Addresses of servers that run already.
        said: What it says about itself in the swarm's table, over ``torch_dtype="float32"``.
        port: The port it listens on; 0 takes a free one.
        identity: A file with its key, made if it is not there; a server with the same key has the same address.

    Attributes:
        address: What clients need.
        asked: The kind, the block and the shape of every request.
        max_tokens: The most tokens it takes in one request.
        before_backward: Called before every backward request.
    """

    def __init__(
        self,
        hf: Any,
        blocks: Iterable[int],
        prefix: str,
        peers: Sequence[str] = (),
        *,
        said: dict[str, Any] | None = None,
        port: int = 0,
        identity: Path | None = None,
    ) -> None:
        self.prefix = prefix
        self.blocks = {number: lone_block(hf, number) for number in blocks}
        self.asked: list[tuple[str, int, tuple[int, ...]]] = []
        self.max_tokens = 2048
        self._stalled = False
        self.before_backward: Callable[[], None] = lambda: None
        self._said = {"torch_dtype": "float32", "quant_type": "none", "adapters": (), **(said or {})}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address: str = self._run(self._start(list(peers), port, identity))

    def kill(self) -> None:
        """End it as a crash of the machine would: nobody is told."""
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """Connections stay open, and nothing is ever answered."""
        self._signal(signal.SIGSTOP)

    def stall(self) -> None:
        """Requests are still taken, and never answered."""
        self._stalled = True

    def close(self) -> None:
        """Stop it, and all that it started."""
        if not self._thread.is_alive():
            return
        with suppress(ProcessLookupError):
            self._signal(signal.SIGCONT)
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _signal(self, number: int) -> None:
        child = self._p2p._child
        if child.returncode is None:
            os.kill(child.pid, number)

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _start(self, peers: list[str], port: int, identity: Path | None) -> str:
        self._p2p = await hivemind("p2p").P2P.create(
            initial_peers=peers,
            host_maddrs=[f"/ip4/127.0.0.1/tcp/{port}"],
            identity_path=None if identity is None else str(identity),
            check_if_identity_free=False,
            nat_port_map=False,
            auto_nat=False,
            use_relay=False,
        )
        self._node = await hivemind("dht.node").DHTNode.create(p2p=self._p2p, initial_peers=peers)
        request = hivemind("proto.runtime_pb2").ExpertRequest
        for kind in ("forward", "backward"):
            name = f"TransformerConnectionHandler.rpc_{kind}"
            await self._p2p.add_protobuf_handler(name, self._unary(kind), request)
            await self._p2p.add_protobuf_handler(
                f"{name}_stream", self._stream(kind), request, stream_input=True, stream_output=True
            )
        await self._announce()
        return str((await self._p2p.get_visible_maddrs())[0])

    async def _announce(self) -> None:
        records = [(_ONLINE, 1.0, self._said)] * len(self.blocks)
        expiry = hivemind("utils").get_dht_time() + 3600
        peer = self._p2p.peer_id.to_base58()
        uids = [f"{self.prefix}.{number}" for number in self.blocks]
        await self._node.store_many(uids, records, expiry, subkeys=[peer] * len(uids))

    async def _stop(self) -> None:
        if self._p2p._child.returncode is None:
            # It would wait for the daemon, also for one that was killed.
            await self._node.shutdown()
        await self._p2p.shutdown()
        self._p2p._child._transport.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    def _unary(self, kind: str) -> Callable[[Any, Any], Any]:
        async def answer(request: Any, context: Any) -> Any:
            tensors = [hivemind("compression").deserialize_torch_tensor(one) for one in request.tensors]
            made = await self._answer(kind, request.uid, tensors)
            return hivemind("proto.runtime_pb2").ExpertResponse(tensors=[made])

        return answer

    def _stream(self, kind: str) -> Callable[[AsyncIterator[Any], Any], AsyncIterator[Any]]:
        async def answer(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            uids: list[str] = []

            async def parts() -> AsyncIterator[Any]:
                async for request in requests:
                    uids.append(request.uid)
                    yield request.tensors

            tensors = await hivemind("compression.serialization").deserialize_tensor_stream(parts())
            made = await self._answer(kind, uids[0], tensors)
            for part in hivemind("utils.streaming").split_for_streaming(made, 1 << 20):
                yield hivemind("proto.runtime_pb2").ExpertResponse(tensors=[part])

        return answer

    async def _answer(self, kind: str, uid: str, tensors: list[torch.Tensor]) -> Any:
        while self._stalled:
            await asyncio.sleep(0.05)
        return await asyncio.get_running_loop().run_in_executor(None, self._compute, kind, uid, tensors)

    def _compute(self, kind: str, uid: str, tensors: list[torch.Tensor]) -> Any:
        number = int(uid.rpartition(".")[2])
        if uid != f"{self.prefix}.{number}" or number not in self.blocks:
            raise RuntimeError(f"Remote peer does not serve {uid}")
        assert tensors[-1].numel() == 0, "the protocol wants prompts, if only empty ones"
        hidden = tensors[0]
        self.asked.append((kind, number, tuple(hidden.shape)))
        if hidden.shape[0] * hidden.shape[1] > self.max_tokens:
            raise ValueError(f"Task size greater than max_batch_size ({self.max_tokens}), it can't be processed")
        if kind == "forward":
            with torch.no_grad():
                made = self.blocks[number](hidden)
        else:
            self.before_backward()
            with torch.enable_grad():
                hidden = hidden.requires_grad_()
                (made,) = torch.autograd.grad(self.blocks[number](hidden), hidden, tensors[1])
        return hivemind("compression").serialize_torch_tensor(made.detach())


def lone_block(hf: Any, number: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """One block with the mask and the positions that its own model makes for it, and nothing before or after it."""
    base = copy.copy(hf.base_model)
    base._modules = dict(base._modules)
    blocks = next(name for name, module in base.named_children() if isinstance(module, nn.ModuleList))
    setattr(base, blocks, nn.ModuleList([getattr(base, blocks)[number]]))
    for norm in ("norm", "ln_f", "word_embeddings_layernorm"):
        if norm in base._modules:
            setattr(base, norm, nn.Identity())
    return lambda hidden: base(inputs_embeds=hidden, use_cache=False).last_hidden_state
