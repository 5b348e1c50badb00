"""A server in the same process, without sockets: a job is deserialised and run on another model object, where
whence and jaxtyping cannot be imported.

Stricter than nnsight's own ``remote="local"``, which deserialises and then runs the caller's original functions.
"""

from __future__ import annotations

import copy
import importlib.abc
import io
import json
import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
import zstandard
from cloudpickle import cloudpickle

from whence.core.errors import RemoteError
from whence.models.ndif.results import read_plain
from whence.models.traffic import Traffic

HIDDEN = ("whence", "jaxtyping")


class Absent(importlib.abc.MetaPathFinder):
    """Makes the hidden packages impossible to import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class Loopback:
    """A transport (see `whence.models.ndif.server.Transport`) to a model in this process.

    Args:
        hf: The model that answers; it must not be the client's object.
        tokenizer: Its tokenizer.
        name: What clients call it.
        tags: What the key may do; with none, as for an ordinary key, jobs run without gradients.
    """

    def __init__(self, hf: Any, tokenizer: Any, name: str, tags: tuple[str, ...] = ("trusted",)) -> None:
        from nnsight import TransformersModel
        from nnsight.modeling.huggingface import HuggingFaceModel

        self.url = "http://loopback"
        self.tags = tags
        self.traffic = Traffic()
        self.blobs: list[bytes] = []
        hf = hf.requires_grad_(False).eval()
        key: dict[str, Any] = {"repo_id": name, "revision": None}
        if hf.config.is_encoder_decoder:
            self.model: Any = HuggingFaceModel(hf)
        else:
            self.model = TransformersModel(hf, task="text-generation", tokenizer=copy.deepcopy(tokenizer))
            key["task"] = "text-generation"
        self.key = f"{type(self.model).__module__}.{type(self.model).__name__}:{json.dumps(key)}"
        self.name = name

    def get(self, path: str, key: str | None = None) -> Any:
        if path == "/whoami":
            return {"email": "someone@example.org", "tags": list(self.tags)}
        if path == "/env":
            names = ("nnsight", "torch", "transformers")
            return {"python_version": sys.version, "packages": {name: version(name) for name in names}}
        deployment = {"model_key": self.key, "repo_id": self.name, "revision": None}
        return {"deployments": {self.key: deployment}}

    def submit(self, model_key: str, blob: bytes, env: Any, note: Any) -> Any:
        from nnsight.schema.request import RequestModel
        from nnsight.tracing import tracer as tracing

        assert model_key == self.key
        self.traffic.requests += 1
        self.traffic.sent += len(blob)
        self.blobs.append(blob)
        note("RUNNING", "Your job has started running.")
        grad = torch.is_grad_enabled()
        try:
            with elsewhere():
                self.model._remoteable_set_env(env)
                job = RequestModel.deserialize(blob, self.model._remoteable_persistent_objects(), compress=True)
                tracing.inc()
                try:
                    with torch.inference_mode(mode="trusted" not in self.tags):
                        job.execute(job.info.code)
                    saved = {k: v for k, v in job.info.frame.f_locals.items() if id(v) in tracing._saves()}
                finally:
                    tracing.dec()
                made = io.BytesIO()
                torch.save(saved, made, pickle_protocol=4)
        except Exception as error:
            raise RemoteError(f"{self.url}: {type(error).__name__}: {error}") from error
        finally:
            self.model.interleaver.cancel()
        assert torch.is_grad_enabled() == grad
        content = zstandard.ZstdCompressor().compress(made.getvalue())
        self.traffic.received += len(content)
        return read_plain(content, self.url, compressed=True)


@contextmanager
def elsewhere() -> Iterator[None]:
    """What a server process lacks: the hidden packages, the caller's source, the caller's trace."""
    from nnsight.tracing import tracer as tracing
    from nnsight.tracing.globals import BLOCKS, SOURCES

    gone = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in HIDDEN}
    # Among them cloudpickle's memory of classes it has sent: a server rebuilds them, a client must not.
    classes = (cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID, cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS)
    caches = [(cache, dict(cache)) for cache in (linecache.cache, SOURCES, BLOCKS, *classes)]
    state = dict(vars(tracing._local))
    finder = Absent()
    vars(tracing._local).clear()
    for name in gone:
        del sys.modules[name]
    for cache, _ in caches:
        cache.clear()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        vars(tracing._local).clear()
        vars(tracing._local).update(state)
        for cache, before in caches:
            cache.clear()
            cache.update(before)
        sys.modules.update(gone)
