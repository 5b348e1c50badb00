"""What a benchmark leaves behind: tables between the marks of a page, figures as JSON, and the machine they are of."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("whence", "torch", "transformers", "nnsight", "inseq", "captum")


def marks(name: str) -> tuple[str, str]:
    """What stands before and after the block of a benchmark in a page."""
    return f"<!-- {name}:start -->", f"<!-- {name}:end -->"


def written(text: str, block: str, name: str) -> str:
    """A page with what stands between the marks replaced.

    Args:
        text: The page.
        block: What is to stand there.
        name: The name in the marks.

    Raises:
        ValueError: The page does not have each mark exactly once, in order.
    """
    first, last = marks(name)
    before, start, rest = text.partition(first)
    _, stop, after = rest.partition(last)
    if not start or not stop or first in rest or last in after:
        raise ValueError(f"the page needs {first} and, after it, {last}, each once")
    return f"{before}{first}\n{block}\n{last}{after}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is of words, the others of numbers.

    Raises:
        ValueError: A row has another number of cells than the head.
    """
    if any(len(row) != len(head) for row in rows):
        raise ValueError(f"every row needs the {len(head)} cells of the head")
    lines = ["|".join(("", *(f" {cell.replace('|', '/')} " for cell in row), "")) for row in (head, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(head) - 1), *lines[1:]])


def machine(device: str, dtype: str) -> dict[str, Any]:
    """The machine and the versions that figures belong to.

    Args:
        device: Where the models ran.
        dtype: In which floating-point type.
    """
    import torch

    found: dict[str, Any] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "load": _load(),
        "dtype": dtype,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    found["versions"] = {name: number for name in PACKAGES if (number := _version(name))}
    found["versions"]["python"] = platform.python_version()
    return found


def machine_note(found: Mapping[str, Any]) -> str:
    """The machine and the versions, as a sentence below a table."""
    where = found.get("gpu") or f"{found['processor']}, {found['threads']} threads"
    numbers = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    load = "" if found["load"] is None else f"; load {found['load']:.1f} before the run"
    return f"{where}; {found['dtype']}{load}. {numbers}."


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0]}" if names else platform.machine()


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def seconds(value: float) -> str:
    """A duration with three digits."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


def mebibytes(value: float) -> str:
    """A size in MiB."""
    return f"{value / 2**20:,.0f} MiB"


def times(value: float) -> str:
    """A ratio with three digits."""
    return f"{value:.3g}x" if value < 1000 else f"{value:,.0f}x"


def keep(block: str, name: str, figures: Any, *, json_file: Path | None, page: Path | None) -> None:
    """Print a block, and write what was asked for.

    Args:
        block: The Markdown.
        name: The name in the page's marks.
        figures: All figures, as plain data.
        json_file: Where these go, or None.
        page: The page that has the marks, or None.
    """
    print(block)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        page.write_text(written(page.read_text(encoding="utf-8"), block, name), encoding="utf-8")
