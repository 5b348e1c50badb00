"""What a `Model` needs of a place that has its weights in another process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Remote(Protocol):
    """What runs programs where the weights are, when they are not in this process."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """``dtype``, ``device`` and ``free`` there, as plain data."""
        ...

    def run(self, program: Callable[..., Any], data: Mapping[str, Any]) -> Any:
        """Run a program there, and bring its result here."""
        ...

    def backend(self) -> Any:
        """What nnsight runs one trace there with."""
        ...
