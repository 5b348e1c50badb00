"""Reading what a server sends: tensors and plain data, and nothing that could run code here.

torch's own ``weights_only`` does not read the pickle protocol that nnsight's messages have.
"""

from __future__ import annotations

import io
import pickle
from types import SimpleNamespace
from typing import Any

from whence.core.errors import RemoteError

_ALLOWED = {
    ("_codecs", "encode"),
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    ("builtins", "frozenset"),
    ("builtins", "set"),
    ("builtins", "slice"),
    ("collections", "OrderedDict"),
    ("nnsight.schema.response", "Status"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.serialization", "_get_layout"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        import torch

        if (module_name, global_name) in _ALLOWED:
            return super().find_class(module_name, global_name)
        found = getattr(torch, global_name, None) if module_name == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it holds {module_name}.{global_name}; save tensors and plain data")


_PLAIN = SimpleNamespace(Unpickler=_Unpickler, load=lambda file, **_: _Unpickler(file).load(), __name__="plain")


def read_plain(content: bytes, url: str, *, compressed: bool = False) -> Any:
    """Read a message or a result in torch's format.

    Args:
        content: The bytes.
        url: Who sent them, for the error.
        compressed: Whether they are compressed (zstandard).

    Returns:
        What was saved, with tensors on the CPU.

    Raises:
        RemoteError: The bytes are damaged, or hold something else than tensors and plain data.
    """
    import torch
    import zstandard

    try:
        if compressed:
            with zstandard.ZstdDecompressor().stream_reader(content) as reader:
                content = reader.read()
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=_PLAIN)
    except Exception as error:
        raise RemoteError(f"the answer of {url} is damaged: {type(error).__name__}: {error}") from error
