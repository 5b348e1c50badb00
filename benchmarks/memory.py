"""Memory: a long prompt, and how near `estimate` is to what a call takes.

Every number is measured in a process of its own, above what the loaded model takes. First a prompt of 8,192 tokens
with 128 generated ones: no call may hold layers x heads x length x length numbers, which the table has as *all
patterns*. Then `Model.estimate` against the measured peak in 10 configurations; within 25% is near.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import whence
from benchmarks import report
from benchmarks.limit_rows import COMPARED
from benchmarks.options import Case, checkpoints, make_parser, opened, parsed, same_again
from benchmarks.timing import in_a_process, peak_bytes, wait, warm_up
from whence.core.progress import Progress

EXAMPLES = """  python -m benchmarks.memory
  python -m benchmarks.memory --quick
  python -m benchmarks.memory --parts estimate --json memory.json
  python -m benchmarks.memory --parts long --device cuda --write docs/performance.md
"""
PARTS = ("long", "estimate")
NEAR = 0.25


@dataclass(frozen=True)
class Call:
    """A call of whence.

    Attributes:
        name: What to call it.
        case: The model and the lengths.
        options: Arguments of `whence.Model.attribute`.
    """

    name: str
    case: Case
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """What was measured of one call: bytes above the model, bytes that were estimated, and seconds.

    Attributes:
        name: The call.
        case: The model and the lengths.
        peak: Bytes above the model.
        estimated: What `Model.estimate` says.
        patterns: Bytes of the attention patterns of all layers.
        seconds: Seconds, of one run.
    """

    name: str
    case: str
    peak: int
    estimated: int
    patterns: int
    seconds: float

    @property
    def ratio(self) -> float:
        """The estimate beside the peak."""
        return self.estimated / max(self.peak, 1)

    @property
    def near(self) -> bool:
        """Whether the estimate is within a quarter of the peak."""
        return abs(self.ratio - 1) <= NEAR


def segments(source: int, count: int) -> list[list[int]]:
    """Equal parts of a prompt."""
    return [part.tolist() for part in np.array_split(np.arange(source), count)]


def long_calls(model: str, source: int, generated: int) -> list[Call]:
    """What a long prompt is asked."""
    case, parts = Case(model, source, generated), {"segments": segments(source, 16), "sides": ["source"]}
    return [
        Call("input_x_gradient", case, {"method": "input_x_gradient"}),
        Call("occlusion, 16 segments", case, {"method": "occlusion", **COMPARED, **parts}),
        Call("attention, last layer", case, {"method": "attention", "layers": [-1]}),
    ]


def estimated_calls(models: Sequence[str], *, quick: bool) -> list[Call]:
    """The configurations in which `estimate` is held against what is measured.

    Args:
        models: Two decoders.
        quick: Make all lengths a sixteenth.
    """
    first, second = models
    path, four = {"method": "integrated_gradients", "n_steps": 16, **COMPARED}, {"sides": ["source"]}
    asked = [
        (first, 64, 32, {"method": "saliency"}),
        (first, 256, 32, {"method": "input_x_gradient"}),
        (first, 64, 32, path),
        (first, 64, 128, {**path, **four, "segments": 4}),
        (first, 128, 32, {"method": "occlusion", **COMPARED}),
        (second, 64, 64, {"method": "saliency"}),
        (second, 256, 64, {"method": "input_x_gradient", "steps": "whole", "target": "logprob"}),
        (second, 128, 16, path),
        (second, 256, 32, {"method": "occlusion", **COMPARED}),
        (second, 128, 32, {"method": "lime", "n_samples": 64, **COMPARED}),
    ]
    made = []
    for model, source, generated, options in asked:
        lengths = (source // 16, generated // 16 + 1) if quick else (source, generated)
        parts = options.get("segments")
        given = {**options, **({"segments": segments(lengths[0], parts)} if parts else {})}
        name = (
            options["method"] + (f", {parts} segments" if parts else "") + (", one span" if "steps" in options else "")
        )
        made.append(Call(name, Case(model, *lengths), given))
    return made


def calls_of(given: argparse.Namespace) -> dict[str, list[Call]]:
    """The calls of every part."""
    source, generated = (24, 8) if given.quick else (given.source, given.generated)
    return {
        "long": long_calls(given.long_model, source, generated),
        "estimate": estimated_calls(given.model, quick=given.quick),
    }


def measured(one: Call, given: argparse.Namespace, folder: Path) -> Line:
    """Bytes and seconds of the call that this process is there for."""
    plain, tokenizer, text = opened(given, one.case, folder)
    model = whence.load(plain, tokenizer=tokenizer)
    asked = (list(text.source), list(text.generated))
    warm_up(model, text)
    estimated = model.estimate(*asked, **one.options).peak_bytes
    seconds = []

    def call() -> None:
        start = time.perf_counter()
        model.attribute(*asked, progress=False, **one.options)
        wait(given.device)
        seconds.append(time.perf_counter() - start)

    peak = peak_bytes(call, given.device)
    config = plain.config.get_text_config()
    length = one.case.source + one.case.generated - 1
    patterns = config.num_hidden_layers * config.num_attention_heads * length**2 * model.dtype.itemsize
    return Line(one.name, str(one.case), peak, estimated, patterns, seconds[0])


def markdown(lines: Mapping[str, Sequence[Line]], found: Mapping[str, Any]) -> str:
    """The lines of every part as a table, and the machine they are of."""
    blocks = []
    for part, some in lines.items():
        if part == "long":
            head = ["call", "memory", "all patterns", "time"]
            rows = [
                [
                    f"{line.case}: {line.name}",
                    report.mebibytes(line.peak),
                    report.mebibytes(line.patterns),
                    report.seconds(line.seconds),
                ]
                for line in some
            ]
            blocks.append(report.table(head, rows))
        else:
            head = ["call", "memory", "estimate", "ratio", "near"]
            rows = [
                [
                    f"{line.case}: {line.name}",
                    report.mebibytes(line.peak),
                    report.mebibytes(line.estimated),
                    f"{line.ratio:.2f}",
                    "yes" if line.near else "no",
                ]
                for line in some
            ]
            near = f"{sum(line.near for line in some)} of {len(some)} estimates are within {NEAR:.0%}."
            blocks += [report.table(head, rows), near]
    return "\n\n".join([*blocks, report.machine_note(found)])


def command() -> argparse.ArgumentParser:
    """The options of the command."""
    made = make_parser("memory", __doc__, EXAMPLES)
    made.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="default: both")
    made.add_argument(
        "--model", nargs=2, default=["gpt2", "llama"], metavar="NAME", help="two decoders for the estimates"
    )
    made.add_argument("--long-model", default="long", metavar="NAME", help="the decoder that reads the long prompt")
    made.add_argument("--source", type=int, default=8192, help="tokens of the long prompt (default: 8192)")
    made.add_argument("--generated", type=int, default=128, help="tokens after it (default: 128)")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    given = parsed(command(), arguments)
    calls, found = calls_of(given), report.machine(given.device, given.dtype)
    with checkpoints(given) as kept:
        folder = Path(kept)
        if given.alone is not None:
            part, _, number = given.alone.partition(":")
            print(json.dumps(asdict(measured(calls[part][int(number)], given, folder))))
            return
        lines: dict[str, list[Line]] = {part: [] for part in given.parts}
        with Progress("calls", sum(len(calls[part]) for part in given.parts)) as bar:
            for part in given.parts:
                for number, one in enumerate(calls[part]):
                    same = [*same_again(given, folder), "--model", *given.model, "--long-model", given.long_model]
                    same += ["--source", str(given.source), "--generated", str(given.generated)]
                    lines[part].append(
                        Line(**in_a_process("benchmarks.memory", [*same, "--alone", f"{part}:{number}"]))
                    )
                    print(f"{one.case} {one.name}: {report.mebibytes(lines[part][-1].peak)}", file=sys.stderr)
                    bar.advance()
    figures = {"machine": found, **{part: [asdict(line) for line in some] for part, some in lines.items()}}
    report.keep(markdown(lines, found), "memory", figures, json_file=given.json, page=given.write)


if __name__ == "__main__":
    main()
