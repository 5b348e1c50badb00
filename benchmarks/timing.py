"""Seconds and bytes of a call: runs of several calls that take turns, and peaks in a process of their own."""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# A C library keeps freed blocks, up to as much again as is in use, and differently in every run. With this GNU's
# gives them back at once, so that the memory of a process is what is in use.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Timing:
    """How long a call took, run after run, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the runs."""
        return statistics.median(self.seconds)


def interleaved(
    calls: Mapping[str, Callable[[], object]], repeats: int, device: str, *, warm_ups: int = 1
) -> dict[str, Timing]:
    """Time calls that take turns (a, b, a, b, ...), so that what slows the machine down slows all of them.

    Args:
        calls: What to time.
        repeats: Timed runs of each.
        device: Where they run; on a GPU a run ends when its work is done.
        warm_ups: Runs of each before any is timed.
    """
    for _ in range(warm_ups):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(once(call, device))
    return {name: Timing(tuple(found)) for name, found in seconds.items()}


def once(call: Callable[[], object], device: str) -> float:
    """Seconds of one run, without the garbage of the runs before it."""
    gc.collect()
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Wait for a GPU to do what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Most memory during a call, above what was taken before it.

    On a CPU that is the memory of the process, which keeps what earlier calls have freed: there every call needs a
    process of its own (see `in_a_process`).

    Args:
        call: What to measure.
        device: Where it runs.
    """
    gc.collect()
    if device.startswith("cuda"):
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _resident("VmRSS")
    reset = _forget_peak()
    call()
    peak = _resident("VmHWM") if reset else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, peak - before)


def warm_up(model: Any, text: Any) -> None:
    """Have whence load what it loads on first use, which belongs to no call.

    Args:
        model: The model, to whence.
        text: A text for it, of which the beginning is used.
    """
    model.attribute(list(text.source[:2]), list(text.generated[:1]), method="saliency", progress=False)


def _forget_peak() -> bool:
    """Let the kernel count the peak of the process anew; False where it cannot."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    if not _STATUS.exists():
        return 0
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def in_a_process(module: str, arguments: Sequence[str]) -> Any:
    """What a module prints as JSON in its last line, when it is run with arguments; memory is given back when freed.

    Args:
        module: Such as ``"benchmarks.limit"``.
        arguments: Arguments of its command.

    Raises:
        RuntimeError: It failed; the end of what it said is in the message.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **_GIVE_BACK})
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])
