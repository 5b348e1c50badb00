"""Where does the time of a call go: into matrix products, attention, other operations, or outside of PyTorch?

For every row of `benchmarks.limit`, whence and the least passes by hand, each in one run that PyTorch's profiler
watches. What is in matrix products no other program would save without fewer products; what is outside is Python's:
the tracer, the library, and waiting. The profiler itself takes time, most of it outside.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import report
from benchmarks.limit import QUICK, rows_asked, settings
from benchmarks.limit_rows import Row, Setting, make_rows
from benchmarks.options import Case, add_model, add_rows, cases_of, checkpoints, make_parser, parsed
from benchmarks.timing import wait
from whence.core.progress import Progress

EXAMPLES = """  python -m benchmarks.profile --model t5 --methods value_zeroing
  python -m benchmarks.profile --quick
  python -m benchmarks.profile --lengths 64+32 --points 4 --json profile.json
  python -m benchmarks.profile --device cuda --write docs/performance.md
"""
KINDS: Mapping[str, tuple[str, ...]] = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
}


@dataclass(frozen=True)
class Line:
    """Where the time of one run went.

    Attributes:
        case: The model and the lengths.
        row: The name of the row.
        who: ``"whence"`` or ``"least"``.
        seconds: Seconds of the run, watched by the profiler.
        products: Of these, seconds in matrix products.
        attention: Seconds in fused attention.
        others: Seconds in all other operations of PyTorch.
    """

    case: str
    row: str
    who: str
    seconds: float
    products: float
    attention: float
    others: float

    @property
    def outside(self) -> float:
        """Seconds in no operation."""
        return max(0.0, self.seconds - self.products - self.attention - self.others)


def kind_of(operation: str) -> str:
    """What an operation counts as: ``"products"``, ``"attention"`` or ``"others"``."""
    if operation in KINDS["products"]:
        return "products"
    return "attention" if any(part in operation for part in KINDS["attention"]) else "others"


def watched(call: Callable[[], object], device: str) -> tuple[float, dict[str, float]]:
    """Seconds of one run, and of these the seconds in operations of every kind."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = device.startswith("cuda")
    if on_gpu:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    # Interventions of a trace run in threads of their own.
    config = torch.profiler._ExperimentalConfig(profile_all_threads=True)
    with torch.profiler.profile(activities=kinds, experimental_config=config) as profiler:
        start = time.perf_counter()
        call()
        wait(device)
        seconds = time.perf_counter() - start
    found = {"products": 0.0, "attention": 0.0, "others": 0.0}
    for event in profiler.key_averages():
        if event.key.startswith(("aten::", "mkldnn::")):
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            found[kind_of(event.key)] += spent / 1e6
    return seconds, found


def measure(setting: Setting, case: Case, name: str, row: Row, device: str) -> list[Line]:
    """Watch whence, and the least passes, after a run of each that is not watched."""
    count = setting.rows(row.options)
    calls = {"whence": lambda: setting.ask(row.options), "least": lambda: row.least(setting, count)}
    lines = []
    for who, call in calls.items():
        call()
        seconds, kinds = watched(call, device)
        lines.append(Line(str(case), name, who, seconds, **kinds))
    return lines


def markdown(lines: Sequence[Line], found: Mapping[str, Any]) -> str:
    """The lines as a table, and the machine they are of."""
    head = ["call", "run", "matrix products", "attention", "other operations", "outside"]
    rows = []
    for line in lines:
        shares = [part / line.seconds for part in (line.products, line.attention, line.others, line.outside)]
        cells = [f"{share:.0%}" for share in shares]
        rows.append([f"{line.case}: {line.row} ({line.who})", report.seconds(line.seconds), *cells])
    return report.table(head, rows) + f"\n\nSingle runs under PyTorch's profiler. {report.machine_note(found)}"


def command() -> argparse.ArgumentParser:
    """The options of the command."""
    made = make_parser("profile", __doc__, EXAMPLES)
    add_model(made, ("gpt2", "llama", "t5"))
    add_rows(made, list(make_rows(16, 50)))
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    given = parsed(command(), arguments)
    cases = cases_of(given, QUICK)
    found, lines = report.machine(given.device, given.dtype), []
    with checkpoints(given) as kept:
        for case in cases:
            setting = settings(given, case, Path(kept))
            rows = rows_asked(setting, case, given)
            with Progress(str(case), len(rows)) as bar:
                for name, row in rows.items():
                    lines += measure(setting, case, name, row, given.device)
                    print("\n".join(markdown(lines[-2:], found).splitlines()[2:4]), file=sys.stderr)
                    bar.advance()
    figures = {"machine": found, "lines": [asdict(line) for line in lines]}
    report.keep(markdown(lines, found), "profile", figures, json_file=given.json, page=given.write)


if __name__ == "__main__":
    main()
