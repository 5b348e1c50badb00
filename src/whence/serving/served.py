"""The model, and how one job is run on it: with nnsight's own deserialiser and tracer."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import linecache
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .settings import Settings


class RefusedError(Exception):
    """A job that is not run; the message goes to the client as it is."""


class Served:
    """The model, and how one job is run on it."""

    def __init__(self, settings: Settings) -> None:
        import torch
        from nnsight import TransformersModel
        from nnsight.modeling.huggingface import HuggingFaceModel
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
        config = AutoConfig.from_pretrained(settings.path)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        chosen: dict[str, Any] = {"dtype": settings.dtype or ("float32" if device == "cpu" else "auto")}
        if settings.attention is not None:
            chosen["attn_implementation"] = settings.attention
        hf: Any = auto.from_pretrained(settings.path, **chosen)
        _keep_unpacked(hf)
        self.module = hf.to(device).eval().requires_grad_(False)
        key: dict[str, Any] = {"repo_id": settings.name, "revision": None}
        if config.is_encoder_decoder:
            self.model: Any = HuggingFaceModel(self.module)
        else:
            tokenizer = AutoTokenizer.from_pretrained(settings.path)
            self.model = TransformersModel(self.module, task="text-generation", tokenizer=tokenizer)
            key["task"] = "text-generation"
        self.name = settings.name
        self.kind = f"{type(self.model).__module__}.{type(self.model).__name__}"
        self.key = f"{self.kind}:{json.dumps(key)}"
        self.objects = self.model._remoteable_persistent_objects()
        self._env = self.model._remoteable_get_env()

    def deployment(self) -> dict[str, Any]:
        """How the model is listed."""
        state = {"deployment_level": "HOT", "application_state": "RUNNING"}
        task = getattr(self.model, "task", None)
        return {"model_key": self.key, "repo_id": self.name, "task": task, "revision": None, **state}

    def answers_to(self, model_key: str) -> bool:
        """Whether a client that names this key means this model."""
        kind, _, rest = model_key.partition(":")
        try:
            asked = json.loads(rest).get("repo_id")
        except (ValueError, AttributeError):
            return False
        same = asked == self.name or (
            isinstance(asked, str) and Path(asked).is_dir() and os.path.realpath(asked) == os.path.realpath(self.name)
        )
        return kind == self.kind and same

    def run(self, blob: bytes, compress: bool, env: dict[str, Any], log: Callable[[str], None]) -> bytes:
        """Run a job, and pack what it saved.

        Raises:
            RefusedError: It cannot be read.
            Exception: Whatever the job raised.
        """
        import torch
        import zstandard
        from nnsight.intervention.serialization import UnknownPersistentIdError
        from nnsight.schema.request import RequestModel
        from nnsight.tracing import tracer as tracing

        out = _Lines(log)
        with _own_sources(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                self.model._remoteable_set_env({**self._env, **env})
                job = RequestModel.deserialize(blob, self.objects, compress=compress)
            except UnknownPersistentIdError as error:
                raise RefusedError(
                    f"The model architecture on this server doesn't match: no module at '{error}'."
                ) from None
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise RefusedError(f"Your request payload could not be read ({reason}).") from None
            tracing.inc()
            try:
                job.execute(job.info.code)
                marked = tracing._saves()
                saved = {name: value for name, value in job.info.frame.f_locals.items() if id(value) in marked}
            finally:
                tracing.dec()
            made = io.BytesIO()
            torch.save(saved, made, pickle_protocol=4)
        content = made.getvalue()
        return zstandard.ZstdCompressor(level=3).compress(content) if compress else content

    def tidy(self) -> None:
        """Leave the model as it was before a job, whatever happened in it."""
        import torch

        self.model.interleaver.cancel()
        self.model._remoteable_set_env(self._env)
        self.module.eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        gc.collect()


def _keep_unpacked(hf: Any) -> None:
    """Keep 4-bit weights from being packed for CPUs with AVX512-BF16: a packed layer's gradients are silently wrong."""
    for layer in hf.modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu"):
            continue
        layer.support_avx512bf16_for_cpu = False
        state = layer.weight.quant_state
        # So bitsandbytes saves the scales of a model that was packed: a column for each row of the weights.
        if state.absmax.ndim == 2:
            state.absmax = state.absmax.T.float().flatten()


@contextlib.contextmanager
def _own_sources() -> Iterator[None]:
    """Confine to one job what is remembered by file name and line: two clients' files may have the same name."""
    from nnsight.tracing.globals import BLOCKS, SOURCES

    before: list[tuple[Any, Any]] = [(cache, dict(cache)) for cache in (linecache.cache, SOURCES, BLOCKS)]
    try:
        yield
    finally:
        for cache, old in before:
            cache.clear()
            cache.update(old)


class _Lines(io.TextIOBase):
    """Hands on what is printed, line by line."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log, self._rest = log, ""

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._log(line)
        return len(text)
