"""How long until whence is there? Cold processes: the import, the help, and an attribution with the bundled model."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import report
from whence.core.progress import Progress

EXAMPLES = """examples:
  python -m benchmarks.startup
  python -m benchmarks.startup --repeats 1 --model whence/stories
  python -m benchmarks.startup --json startup.json --write docs/performance.md
"""
TEXT = "Once upon a time"


@dataclass(frozen=True)
class Start:
    """What is run in a process of its own.

    Attributes:
        name: What to call it.
        command: Arguments of Python.
        limit: Seconds it should stay below, or None.
    """

    name: str
    command: tuple[str, ...]
    limit: float | None


@dataclass(frozen=True)
class Line:
    """Seconds of a process, the median of some runs; and the limit."""

    name: str
    seconds: float
    limit: float | None


def starts(model: str, device: str, dtype: str) -> tuple[Start, ...]:
    """What is measured.

    Args:
        model: The model of the attribution.
        device: Where it runs.
        dtype: In which floating-point type.
    """
    asked = ("attribute", TEXT, "--model", model, "--device", device, "--dtype", dtype)
    return (
        Start("python -c pass", ("-c", "pass"), None),
        Start("import whence", ("-c", "import whence"), 0.3),
        Start("whence --help", ("-m", "whence", "--help"), 0.4),
        Start("whence attribute", ("-m", "whence", *asked), 8.0),
    )


def seconds_of(command: Sequence[str]) -> float:
    """Seconds from the start of a Python process to its end.

    Raises:
        RuntimeError: It failed; the end of what it said is in the message.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return took


def measure(things: Sequence[Start], repeats: int) -> list[Line]:
    """Run the processes in turns, after one of each that finds the files in no cache."""
    seconds: dict[str, list[float]] = {one.name: [] for one in things}
    with Progress("processes", (repeats + 1) * len(things)) as bar:
        for number in range(repeats + 1):
            for one in things:
                took = seconds_of(one.command)
                if number:
                    seconds[one.name].append(took)
                bar.advance()
    return [Line(one.name, statistics.median(seconds[one.name]), one.limit) for one in things]


def markdown(lines: Sequence[Line], found: Mapping[str, Any], repeats: int) -> str:
    """The lines as a table, and the machine they are of."""
    rows = [
        [f"`{line.name}`", report.seconds(line.seconds), "-" if line.limit is None else report.seconds(line.limit)]
        for line in lines
    ]
    runs = f"medians of {repeats} processes" if repeats > 1 else "one process"
    note = f"Wall time, {runs}; nothing is kept between processes but the files that the system has in memory."
    return report.table(["process", "takes", "at most"], rows) + f"\n\n{note} {report.machine_note(found)}"


def command() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", default="whence/stories", help="model of the attribution (default: whence/stories)")
    made.add_argument("--device", default="cpu", help="such as cpu or cuda (default: cpu)")
    made.add_argument("--dtype", default="float32", help="floating-point type of the model (default: float32)")
    made.add_argument("--repeats", type=int, default=5, help="timed runs of each process (default: 5)")
    made.add_argument("--quick", action="store_true", help="one run, without the attribution")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    made.add_argument("--write", type=Path, metavar="FILE", help="write the table between the marks of this page")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    given = command().parse_args(arguments)
    if given.repeats < 1:
        command().error("--repeats must be at least 1")
    found = report.machine(given.device, given.dtype)
    things = starts(given.model, given.device, given.dtype)
    repeats = 1 if given.quick else given.repeats
    lines = measure(things[:-1] if given.quick else things, repeats)
    figures = {"machine": found, "lines": [asdict(line) for line in lines]}
    report.keep(markdown(lines, found, repeats), "startup", figures, json_file=given.json, page=given.write)


if __name__ == "__main__":
    main()
