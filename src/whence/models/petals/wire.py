"""One request to one server, as Petals' protocol has it: tensors out, one tensor back.

Nothing here retries or waits for a bounded time; `whence.models.petals.swarm` does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from whence.models.petals.hive import hivemind
from whence.models.traffic import Traffic

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

Kind = Literal["forward", "backward"]
# Part of the protocol: servers register their handlers under this name.
_HANDLER = "TransformerConnectionHandler"
# Petals' own client streams what is larger than this (half of hivemind's limit, which is half of a message).
_UNARY_BYTES = 1 << 20
_CHUNK_BYTES = 4 << 20


async def call(
    p2p: Any, peer: str, kind: Kind, uid: str, tensors: Sequence[Float[Tensor, "row position unit"]], traffic: Traffic
) -> Float[Tensor, "row position unit"]:
    """Ask one server to run a block.

    Args:
        p2p: hivemind's handle on the daemon.
        peer: The server's peer id in base58.
        kind: ``"forward"`` takes a block's input, ``"backward"`` its input and the gradient of its output.
        uid: The block's name in the swarm.
        tensors: On the CPU; one or two, by the kind.
        traffic: Counts the request.

    Returns:
        The block's output, or the gradient of its input.

    Raises:
        ConnectionError: The server closed the connection without an answer.
        ValueError: It answered with another shape.
    """
    runtime = hivemind("proto.runtime_pb2")
    # The protocol wants a tensor of deep prompts even when there are none.
    messages = [encode(one) for one in (*tensors, torch.empty(0))]
    metadata = hivemind("utils.serializer").MSGPackSerializer.dumps({"points": 0.0, "active_adapter": ""})
    peer_id = hivemind("p2p").PeerID.from_base58(peer)
    name = f"{_HANDLER}.rpc_{kind}"
    traffic.requests += 1
    if sum(len(one.buffer) for one in messages) <= _UNARY_BYTES:
        request = runtime.ExpertRequest(uid=uid, tensors=messages, metadata=metadata)
        traffic.sent += request.ByteSize()
        answer = await p2p.call_protobuf_handler(peer_id, name, request, runtime.ExpertResponse)
        traffic.received += answer.ByteSize()
        found = list(answer.tensors)
    else:
        parts = _parts(messages, uid, metadata, traffic)
        stream = await p2p.iterate_protobuf_handler(peer_id, f"{name}_stream", parts, runtime.ExpertResponse)
        chunks = []
        async for answer in stream:
            traffic.received += answer.ByteSize()
            chunks += answer.tensors
        found = [hivemind("utils.streaming").combine_from_streaming(chunks)] if chunks else []
    if not found:
        # A server that is killed in the middle of a stream ends it like one that has said all.
        raise ConnectionError("the server closed the connection before it answered")
    return decode(found[0], tensors[0].shape)


async def _parts(messages: list[Any], uid: str, metadata: bytes, traffic: Traffic) -> AsyncIterator[Any]:
    runtime = hivemind("proto.runtime_pb2")
    for message in messages:
        for chunk in hivemind("utils.streaming").split_for_streaming(message, _CHUNK_BYTES):
            request = runtime.ExpertRequest(uid=uid, tensors=[chunk], metadata=metadata)
            traffic.sent += request.ByteSize()
            yield request


def encode(tensor: Float[Tensor, "..."]) -> Any:
    """A tensor as the protocol's message, uncompressed.

    hivemind's own function turns bfloat16 into float32, unless a global of it is changed.
    """
    runtime = hivemind("proto.runtime_pb2")
    plain = tensor.detach().contiguous()
    raw = plain.view(torch.int16) if plain.dtype == torch.bfloat16 else plain
    return runtime.Tensor(
        compression=runtime.CompressionType.NONE,
        buffer=raw.numpy().tobytes(),
        size=plain.shape,
        dtype=str(plain.dtype).removeprefix("torch."),
    )


def decode(message: Any, shape: torch.Size) -> Float[Tensor, "row position unit"]:
    """The tensor in a server's message, in whatever compression the server chose.

    Args:
        message: The message.
        shape: What the tensor must have.

    Returns:
        The tensor.

    Raises:
        ValueError: It has another shape.
    """
    tensor = hivemind("compression").deserialize_torch_tensor(message).detach()
    if tensor.shape != shape:
        raise ValueError(f"the server answered with a tensor of shape {list(tensor.shape)}, not {list(shape)}")
    return tensor
