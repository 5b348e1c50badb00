"""Signs of life that appear only when something takes longer than a second: a bar, or a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

_PATIENCE = 1.0
_WANTED: ContextVar[bool] = ContextVar("whence_progress_wanted", default=True)


@contextmanager
def progress_wanted(wanted: bool) -> Iterator[None]:
    """Silence everything inside the ``with`` block, unless wanted."""
    token = _WANTED.set(wanted and _WANTED.get())
    try:
        yield
    finally:
        _WANTED.reset(token)


def _watched() -> bool:
    return _WANTED.get() and (sys.stderr.isatty() or "ipykernel" in sys.modules)


class Progress:
    """Counts units of work; after a second without an end in sight, shows a bar on standard error.

    Args:
        label: What is being done.
        total: Units of work in all.
        show: False keeps it silent; None shows it where standard error is a terminal or a notebook.
    """

    def __init__(self, label: str, total: int, *, show: bool | None = True) -> None:
        self.label = label
        self.total = max(total, 1)
        self.done = 0
        self._show = bool(show) and _watched()
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, units: int = 1) -> None:
        """Note that some units of work are done."""
        self.done += units
        if not self._show:
            return
        if self._bar is None:
            if time.monotonic() - self._start < _PATIENCE or self.done >= self.total:
                return
            self._bar, self._task = self._open()
        self._bar.update(self._task, completed=min(self.done, self.total))

    def _open(self) -> tuple[Any, Any]:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bar.start()
        return bar, bar.add_task(self.label, total=self.total)


class Waiting:
    """A line that says what is waited for, once that takes longer than a second.

    Args:
        label: Who is waited for.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.text = ""
        self._show = _watched()
        self._start = time.monotonic()
        self._status: Any = None

    def __enter__(self) -> Waiting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def note(self, text: str = "") -> None:
        """Say what is going on; without a text, only that it still is."""
        self.text = text or self.text
        seconds = time.monotonic() - self._start
        if not self._show or seconds < _PATIENCE:
            return
        line = f"{self.label}: {self.text} ({seconds:.0f} s)"
        if self._status is None:
            from rich.console import Console

            self._status = Console(stderr=True).status(line)
            self._status.start()
        self._status.update(line)
