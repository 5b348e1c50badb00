"""The hall: jobs that wait, the one that runs, the clients that listen, and results to be fetched."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import secrets
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .served import RefusedError, Served
from .settings import Settings

_INLINE = 4 << 20
_KEPT_RESULTS = 64
_KEPT_SECONDS = 3600.0
_GRACE = 30.0
_HERE = Path(__file__).parent


class Interrupted(BaseException):
    """Raised in the thread of a job that must end."""


class Job:
    """One request on its way through the queue."""

    def __init__(self, request: Any, blob: bytes, base: str) -> None:
        self.id = secrets.token_urlsafe(18)
        self.request, self.blob, self.base = request, blob, base
        self.gone = False
        self._lock = threading.Lock()
        self._thread: int | None = None

    def run(self, served: Served, log: Callable[[str], None]) -> bytes:
        """Run in this thread, so that `interrupt` can end it."""
        with self._lock:
            self._thread = threading.get_ident()
        try:
            try:
                return served.run(self.blob, self.request.compress, self.request.env, log)
            finally:
                with self._lock:
                    self._thread = None
        except (Interrupted, SystemExit):
            raise RefusedError("Your job was interrupted.") from None
        finally:
            served.tidy()

    def interrupt(self) -> None:
        """Raise in the job's thread, at its next step of Python."""
        with self._lock:
            if self._thread is not None:
                thread, kind = ctypes.c_ulong(self._thread), ctypes.py_object(Interrupted)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, kind)


class Hall:
    """The queue, the clients that listen, and the results that wait to be fetched."""

    def __init__(self, settings: Settings, served: Served) -> None:
        self.settings, self.served = settings, served
        self.waiting: list[Job] = []
        self.running: Job | None = None
        self.listeners: dict[str, asyncio.Queue[str | bytes]] = {}
        self.last: OrderedDict[str, str] = OrderedDict()
        self.results: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._arrived = asyncio.Event()

    def accept(self, job: Job) -> Any:
        """Take a job into the queue, or refuse it; the first status either way."""
        if not self.served.answers_to(job.request.model_key):
            text = f"Could not deploy this model. This server has {self.served.key}, not {job.request.model_key}."
            return self._status(job, "ERROR", text)
        if len(self.waiting) >= self.settings.queue:
            return self._status(job, "ERROR", f"The queue is full ({self.settings.queue} jobs). Try again later.")
        self.waiting.append(job)
        self._arrived.set()
        self.tell_positions()
        return self._status(job, "RECEIVED", "Your job has been received.")

    def leave(self, session: str) -> None:
        """A client is gone: nobody waits for its jobs any more."""
        self.listeners.pop(session, None)
        for job in [*self.waiting, *([self.running] if self.running else [])]:
            if job.request.session_id == session:
                job.gone = True
                job.interrupt()
        self.waiting = [job for job in self.waiting if not job.gone]

    def tell_positions(self) -> None:
        """Tell every waiting client how many jobs are before its own."""
        for place, job in enumerate(self.waiting):
            ahead = place + (self.running is not None)
            self.tell(job, "QUEUED", f"{ahead} jobs before yours." if ahead != 1 else "1 job before yours.")

    async def work(self) -> None:
        """Run one job after the other."""
        while True:
            while not self.waiting:
                self._arrived.clear()
                await self._arrived.wait()
            job = self.running = self.waiting.pop(0)
            self.tell_positions()
            start = time.monotonic()
            try:
                outcome = await self._one(job)
            except Exception as error:
                outcome = f"failed ({error})"
                self.tell(job, "ERROR", f"The server failed: {type(error).__name__}: {error}")
            self.running = None
            _report(f"job {job.id[:6]}: {outcome}, {time.monotonic() - start:.2f} s, {len(job.blob)} bytes in")

    async def _one(self, job: Job) -> str:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[bytes] = loop.create_future()

        def log(text: str) -> None:
            loop.call_soon_threadsafe(self.tell, job, "LOG", text)

        def settle(result: bytes | None, error: BaseException | None) -> None:
            if error is not None:
                done.set_exception(error)
            elif result is not None:
                done.set_result(result)

        def thread() -> None:
            result, failure = None, None
            try:
                result = job.run(self.served, log)
            except BaseException as error:
                failure = error
            # At the end of the server nobody listens any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, result, failure)

        self.tell(job, "RUNNING", "Your job has started running.")
        threading.Thread(target=thread, daemon=True).start()
        finished, _ = await asyncio.wait({done}, timeout=self.settings.timeout)
        if not finished:
            self.tell(job, "ERROR", f"Your job exceeded the execution timeout of {self.settings.timeout:g}s.")
            job.interrupt()
            finished, _ = await asyncio.wait({done}, timeout=_GRACE)
            if not finished:
                _report("a job does not end; the server stops.")
                os._exit(1)
            done.exception()
            return "timed out"
        error = done.exception()
        if error is not None:
            text = str(error) if isinstance(error, RefusedError) else _told(error)
            self.tell(job, "ERROR", text)
            return f"failed ({(text.strip().splitlines() or [''])[-1]})"
        return self._deliver(job, done.result())

    def _deliver(self, job: Job, content: bytes) -> str:
        if len(content) > self.settings.result_bytes:
            most = self.settings.result_bytes / 2**20
            self.tell(job, "ERROR", f"The result has {len(content)} bytes, and this server sends {most:g} MiB at most.")
            return "failed (result too large)"
        text = "Your job has been completed."
        if job.request.session_id and len(content) <= _INLINE:
            self.tell(job, "COMPLETED", text, content)
        else:
            self._forget()
            self.results[job.id] = (time.monotonic(), content)
            self.tell(job, "COMPLETED", text, f"{job.base}results/{job.id}")
        return f"completed, {len(content)} bytes out"

    def _forget(self) -> None:
        """Drop results that nobody fetched."""
        old = time.monotonic() - _KEPT_SECONDS
        for key in [key for key, (made, _) in self.results.items() if made < old]:
            del self.results[key]
        while len(self.results) >= _KEPT_RESULTS:
            self.results.popitem(last=False)

    def tell(self, job: Job, status: str, text: str, data: str | bytes | None = None) -> None:
        """Send a status to whoever listens, and remember it for those who ask."""
        response = self._status(job, status, text, data)
        listener = self.listeners.get(job.request.session_id)
        if listener is not None:
            listener.put_nowait(response.pickle() if isinstance(data, bytes) else response.model_dump_json())

    def _status(self, job: Job, status: str, text: str, data: str | bytes | None = None) -> Any:
        from nnsight.schema.response import ResponseModel, Status

        response = ResponseModel(id=job.id, status=Status(status), description=text, data=data)
        if status != "LOG" and not job.request.session_id:
            self.last[job.id] = response.model_dump_json()
            while len(self.last) > 4 * _KEPT_RESULTS:
                self.last.popitem(last=False)
        return response


def _report(line: str) -> None:
    # Not what a job redirects.
    assert sys.__stderr__ is not None
    sys.__stderr__.write(f"{line}\n")
    sys.__stderr__.flush()


def _told(error: BaseException) -> str:
    """A traceback without the server's own frames."""
    told = traceback.TracebackException.from_exception(error)
    others = [frame for frame in told.stack if Path(frame.filename).parent != _HERE]
    told.stack = traceback.StackSummary.from_list(others)
    return "".join(told.format())
