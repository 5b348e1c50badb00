"""How far is whence from the least work? The same batched passes in plain PyTorch, with no tracer.

Two things are timed beside every call of whence, each with as many rows in a pass and products in a batch as whence
takes: *least*, the passes that the scores need; and *checked*, these and the passes of whence's checks (the target on
the clean input, the site written back, the derivative by the other mode). What whence takes beyond *checked* is the
tracer and the library, what *checked* takes beyond *least* is the price of the checks. Before anything is timed, the
scores have to agree.
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
from benchmarks.limit_rows import Row, Setting, make_rows
from benchmarks.options import (
    Case,
    add_model,
    add_no_memory,
    add_repeats,
    add_rows,
    cases_of,
    checkpoints,
    make_parser,
    opened,
    parsed,
    same_again,
)
from benchmarks.timing import in_a_process, interleaved, peak_bytes, warm_up
from whence.core.progress import Progress

EXAMPLES = """  python -m benchmarks.limit
  python -m benchmarks.limit --quick --repeats 1
  python -m benchmarks.limit --model llama --methods saliency occlusion --json limit.json
  python -m benchmarks.limit --device cuda --dtype bfloat16 --no-memory
  python -m benchmarks.limit --write docs/performance.md
"""
# More steps than parts of the prompt, so that forward mode is chosen for these.
QUICK = "8+20"
# How far scores may be from those by hand, beside the largest, by the bytes of a number.
TOLERANCE = {8: 1e-6, 4: 2e-3, 2: 0.2}


@dataclass(frozen=True)
class Line:
    """What was measured of one call.

    Attributes:
        case: The model and the lengths.
        row: The name of the row.
        whence: Seconds of whence, the median.
        checked: Seconds of the same passes by hand.
        least: Seconds of the passes that the scores need.
        difference: Largest difference of the scores, beside the largest.
        rows: Rows per pass.
        peak: Bytes of whence above the model, or None.
        peak_least: The same by hand.
    """

    case: str
    row: str
    whence: float
    checked: float
    least: float
    difference: float
    rows: int
    peak: int | None = None
    peak_least: int | None = None


def difference(scores: np.ndarray, hand: np.ndarray) -> float:
    """Largest difference of scores, beside the largest of them; where a step cannot look there is none."""
    given = scores[:, : hand.shape[1]]
    seen = ~np.isnan(given)
    return float(np.abs(given - hand)[seen].max() / np.abs(given[seen]).max())


def measure(setting: Setting, case: Case, name: str, row: Row, given: argparse.Namespace) -> Line:
    """Compare the scores of a call, then time it."""
    rows = setting.rows(row.options)
    calls = {
        "whence": lambda: setting.ask(row.options),
        "checked": lambda: (row.checks(setting), row.least(setting, rows)),
        "least": lambda: row.least(setting, rows),
    }
    far = difference(setting.ask(row.options).scores.values, row.least(setting, rows))
    if not far <= TOLERANCE[setting.plain.dtype.itemsize]:
        raise RuntimeError(f"{case}, {name}: the scores by hand differ by {far:.1e} of the largest")
    found = interleaved(calls, given.repeats, given.device, warm_ups=0)
    mine, checked, least = (found[key].median for key in ("whence", "checked", "least"))
    return Line(str(case), name, mine, checked, least, far, rows)


def peaks(case: Case, name: str, given: argparse.Namespace, folder: Path) -> dict[str, int]:
    """Bytes of whence and of the least passes, each in a process of its own."""
    common = [*same_again(given, folder), "--points", str(given.points), "--model", case.model]
    common += ["--lengths", f"{case.source}+{case.generated}", "--methods", name]
    return {key: in_a_process("benchmarks.limit", [*common, "--alone", key])["peak"] for key in ("whence", "least")}


def peak_of(setting: Setting, row: Row, given: argparse.Namespace) -> int:
    """Bytes above the model of the call that this process is there for."""
    count = setting.rows(row.options)
    calls = {"whence": lambda: setting.ask(row.options), "least": lambda: row.least(setting, count)}
    warm_up(setting.model, setting.text)
    return peak_bytes(calls[given.alone], given.device)


def markdown(lines: Sequence[Line], found: Mapping[str, Any], repeats: int) -> str:
    """The lines as a table, and the machine they are of."""
    head = ["call", "whence", "checked", "least", "beside checked", "beside least", "memory", "least"]
    rows = []
    for line in lines:
        sizes = ["-" if peak is None else report.mebibytes(peak) for peak in (line.peak, line.peak_least)]
        spans = [report.seconds(value) for value in (line.whence, line.checked, line.least)]
        ratios = [f"{line.whence / value:.2f}" for value in (line.checked, line.least)]
        rows.append([f"{line.case}: {line.row}", *spans, *ratios, *sizes])
    runs = f"Medians of {repeats} runs" if repeats > 1 else "Single runs"
    return report.table(head, rows) + f"\n\n{runs}, taking turns. {report.machine_note(found)}"


def settings(given: argparse.Namespace, case: Case, folder: Path) -> Setting:
    """The model of a case, to whence and, with weights of its own that no tracer has seen, by hand."""
    traced, tokenizer, text = opened(given, case, folder)
    plain = opened(given, case, folder)[0]
    eager = opened(given, case, folder, "eager")[0] if not plain.config.is_encoder_decoder else None
    return Setting(whence.load(traced, tokenizer=tokenizer), text, plain, eager)


def rows_asked(setting: Setting, case: Case, given: argparse.Namespace) -> dict[str, Row]:
    """The rows that were asked for and are for this model."""
    rows, kind = make_rows(case.source, given.points), setting.plain.config.model_type
    return {name: rows[name] for name in given.methods if kind in rows[name].families}


def command() -> argparse.ArgumentParser:
    """The options of the command."""
    made = make_parser("limit", __doc__, EXAMPLES)
    add_repeats(made)
    add_model(made, ("gpt2", "llama", "t5"))
    add_rows(made, list(make_rows(16, 50)))
    add_no_memory(made)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    given = parsed(command(), arguments)
    cases = cases_of(given, QUICK)
    found, lines = report.machine(given.device, given.dtype), []
    with checkpoints(given) as kept:
        folder = Path(kept)
        for case in cases:
            setting = settings(given, case, folder)
            rows = rows_asked(setting, case, given)
            if given.alone is not None:
                print(json.dumps({"peak": peak_of(setting, next(iter(rows.values())), given)}))
                return
            with Progress(str(case), len(rows)) as bar:
                for name, row in rows.items():
                    line = measure(setting, case, name, row, given)
                    if not given.no_memory:
                        sizes = peaks(case, name, given, folder)
                        line = replace(line, peak=sizes["whence"], peak_least=sizes["least"])
                    lines.append(line)
                    print(f"{case} {name}: {line.whence / line.least:.2f} of the least", file=sys.stderr)
                    bar.advance()
    block = markdown(lines, found, given.repeats)
    figures = {"machine": found, "lines": [asdict(line) for line in lines]}
    report.keep(block, "limit", figures, json_file=given.json, page=given.write)


if __name__ == "__main__":
    main()
