"""How do time and memory grow with the prompt, the continuation, the number of segments, and the batch?

One of them changes at a time. Through the points of every line goes a power law; its exponent is 1 where twice as much
takes twice as long. Short texts have exponents below that of long ones, as a pass has costs of its own. Memory is that
of a process of its own, above what the loaded model takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import whence
from benchmarks import report
from benchmarks.bench_models import Text
from benchmarks.limit_rows import COMPARED
from benchmarks.options import (
    Case,
    add_model,
    add_no_memory,
    add_repeats,
    checkpoints,
    make_parser,
    opened,
    parsed,
    same_again,
)
from benchmarks.plot import Panel, exponent, picture
from benchmarks.timing import in_a_process, interleaved, peak_bytes, warm_up
from whence.core.progress import Progress

EXAMPLES = """  python -m benchmarks.scaling --plot scaling.svg
  python -m benchmarks.scaling --quick --repeats 1 --no-memory
  python -m benchmarks.scaling --axes source generated --methods input_x_gradient --json scaling.json
  python -m benchmarks.scaling --device cuda --dtype bfloat16 --write docs/performance.md
"""


@dataclass(frozen=True)
class Size:
    """The size of a question.

    Attributes:
        source: Tokens of every prompt.
        generated: Tokens of every continuation.
        segments: Segments of the prompt, which are all that is asked about; 0 asks about every token.
        batch: Prompts, all in one batch.
    """

    source: int = 64
    generated: int = 32
    segments: int = 0
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.batch} x {self.source}+{self.generated} tokens, {self.segments or 'no'} segments"


USUAL: Mapping[str, Size] = {
    "source": Size(),
    "generated": Size(),
    "segments": Size(generated=128),
    "batch": Size(source=32, generated=16),
}
VALUES: Mapping[str, tuple[int, ...]] = {
    "source": (32, 64, 128, 256, 512),
    "generated": (16, 32, 64, 128, 256),
    "segments": (4, 8, 16, 32, 64),
    "batch": (1, 2, 4, 8),
}
QUICK: Mapping[str, tuple[int, ...]] = {"source": (8, 16), "generated": (4, 8), "segments": (2, 4), "batch": (1, 2)}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "input_x_gradient": {"method": "input_x_gradient"},
    "integrated_gradients": {"method": "integrated_gradients", "n_steps": 8, **COMPARED},
    "occlusion": {"method": "occlusion", **COMPARED},
    "attention": {"method": "attention"},
}


@dataclass(frozen=True)
class Point:
    """What was measured of one size.

    Attributes:
        model: The model.
        method: The method.
        axis: What changes: a field of `Size`.
        value: Its value.
        seconds: Seconds, the median.
        peak: Bytes above the model, or None.
    """

    model: str
    method: str
    axis: str
    value: int
    seconds: float
    peak: int | None = None


def call(model: whence.Model, method: str, size: Size, source: Sequence[int], generated: Sequence[int]) -> object:
    """One question of a size, about the beginning of a text."""
    options = dict(METHODS[method])
    if size.segments:
        parts = np.array_split(np.arange(size.source), size.segments)
        options |= {"segments": [part.tolist() for part in parts], "sides": ["source"]}
    prompts = [list(source[: size.source])] * size.batch
    continuations = [list(generated[: size.generated])] * size.batch
    return model.attribute(prompts, continuations, batch_size=size.batch, progress=False, **options)


def sizes_of(axis: str, values: Sequence[int]) -> list[Size]:
    """The usual size with other values of one field."""
    return [replace(USUAL[axis], **{axis: value}) for value in values]


def exponents(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The exponents of time and memory along every line.

    Returns:
        One entry per model, axis and method: ``model``, ``axis``, ``method``, ``time`` and ``memory`` (None where it
        was not measured, or did not rise above the model's).
    """
    lines: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        lines.setdefault((point.model, point.axis, point.method), []).append(point)
    found = []
    for (model, axis, method), line in lines.items():
        sized = [(point.value, point.peak) for point in line if point.peak]
        found.append(
            {
                "model": model,
                "axis": axis,
                "method": method,
                "time": exponent([(point.value, point.seconds) for point in line]),
                "memory": exponent(sized) if len(sized) == len(line) else None,
            }
        )
    return found


def markdown(points: Sequence[Point], found: Mapping[str, Any], repeats: int) -> str:
    """The ends of every line with its exponents as a table, and the machine they are of."""
    rows = []
    for one in exponents(points):
        key = (one["model"], one["axis"], one["method"])
        line = [point for point in points if (point.model, point.axis, point.method) == key]
        first, last = line[0], line[-1]
        memory = "-" if one["memory"] is None else f"{one['memory']:.2f}"
        rows.append(
            [
                f"{one['model']}: {one['method']}, {one['axis']} {first.value} to {last.value}",
                f"{report.seconds(first.seconds)} to {report.seconds(last.seconds)}",
                f"{one['time']:.2f}",
                "-" if last.peak is None else report.mebibytes(last.peak),
                memory,
            ]
        )
    runs = f"medians of {repeats} runs" if repeats > 1 else "single runs"
    others = "; ".join(f"{axis}: {USUAL[axis]}" for axis in dict.fromkeys(point.axis for point in points))
    note = f"Exponents of power laws, {runs}. The question that changes, along each axis: {others}."
    note += f" {report.machine_note(found)}"
    return report.table(["line", "time", "exponent", "memory at the end", "exponent of memory"], rows) + f"\n\n{note}"


def panels(points: Sequence[Point]) -> list[Panel]:
    """Pictures of time, and of memory where it was measured, along every axis."""
    made = []
    for model, axis in dict.fromkeys((point.model, point.axis) for point in points):
        mine = [point for point in points if (point.model, point.axis) == (model, axis)]
        time: dict[str, list[tuple[float, float]]] = {}
        memory: dict[str, list[tuple[float, float]]] = {}
        for point in mine:
            time.setdefault(point.method, []).append((point.value, point.seconds))
            if point.peak:
                memory.setdefault(point.method, []).append((point.value, point.peak / 2**20))
        made.append(Panel(f"{model}: time", axis, "seconds", time))
        if memory:
            made.append(Panel(f"{model}: memory above the model", axis, "MiB", memory))
    return made


@dataclass(frozen=True)
class Subject:
    """A model with a text that is long enough for every size."""

    case: Case
    model: whence.Model
    text: Text

    def ask(self, method: str, size: Size) -> object:
        """One question of a size."""
        return call(self.model, method, size, self.text.source, self.text.generated)


def measure(subject: Subject, method: str, axis: str, size: Size, given: argparse.Namespace, folder: Path) -> Point:
    """Time a question, and have a process of its own say how much memory it takes."""
    calls = {"whence": lambda: subject.ask(method, size)}
    found = interleaved(calls, given.repeats, given.device, warm_ups=0)["whence"].median
    peak = None
    if not given.no_memory:
        asked = json.dumps({"method": method, "size": asdict(size)})
        common = [*same_again(given, folder), "--model", subject.case.model]
        peak = in_a_process("benchmarks.scaling", [*common, "--alone", asked])["peak"]
    return Point(Path(subject.case.model).name, method, axis, getattr(size, axis), found, peak)


def peak_of(subject: Subject, given: argparse.Namespace) -> int:
    """Bytes above the model of the one question that this process is there for."""
    asked = json.loads(given.alone)
    return peak_bytes(lambda: subject.ask(asked["method"], Size(**asked["size"])), given.device)


def subject_of(name: str, values: Mapping[str, Sequence[int]], given: argparse.Namespace, folder: Path) -> Subject:
    """A model, and a text as long as the longest question."""
    sizes = [size for axis in values for size in sizes_of(axis, values[axis])]
    case = Case(name, max(size.source for size in sizes), max(size.generated for size in sizes))
    plain, tokenizer, text = opened(given, case, folder)
    return Subject(case, whence.load(plain, tokenizer=tokenizer), text)


def command() -> argparse.ArgumentParser:
    """The options of the command."""
    made = make_parser("scaling", __doc__, EXAMPLES)
    add_repeats(made)
    add_model(made, ("gpt2",))
    axes = list(VALUES)
    made.add_argument("--axes", nargs="+", default=axes, choices=axes, help="what changes (default: all)")
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), help="default: all")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw the lines into this SVG file")
    add_no_memory(made)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw, and write what was asked for."""
    given = parsed(command(), arguments)
    values = QUICK if given.quick else VALUES
    found, points = report.machine(given.device, given.dtype), []
    with checkpoints(given) as kept:
        folder = Path(kept)
        for name in given.model:
            subject = subject_of(name, values, given, folder)
            warm_up(subject.model, subject.text)
            if given.alone is not None:
                print(json.dumps({"peak": peak_of(subject, given)}))
                return
            asked = [(axis, size) for axis in given.axes for size in sizes_of(axis, values[axis])]
            with Progress(name, len(asked) * len(given.methods)) as bar:
                for axis, size in asked:
                    for method in given.methods:
                        points.append(measure(subject, method, axis, size, given, folder))
                        print(f"{name} {method} {size}: {points[-1].seconds:.3g} s", file=sys.stderr)
                        bar.advance()
    block = markdown(points, found, given.repeats)
    if given.plot is not None:
        given.plot.write_text(picture(panels(points)), encoding="utf-8")
        if given.write is not None and given.plot.parent == given.write.parent:
            block += f"\n\n![Time and memory along every axis]({given.plot.name})"
    figures = {"machine": found, "points": [asdict(point) for point in points], "exponents": exponents(points)}
    report.keep(block, "scaling", figures, json_file=given.json, page=given.write)


if __name__ == "__main__":
    main()
