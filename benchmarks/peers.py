"""How fast are Inseq, Captum and whence on the same weights, prompt and continuation, in one process, run after run?

First the scores of a step are compared, wherever both compute the same definition. Then runs take turns: the peer,
whence, the peer, whence. A peer that would take longer than --peer-seconds for a run is asked for fewer steps (those in
the middle of the continuation; of Captum the first) or fewer points, and its time is multiplied accordingly; such times
are marked with ~. Memory is that of a process of its own, above what the loaded model takes. `make bench-env` makes an
environment with the peers.
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
from benchmarks.peer_calls import Captum, Inseq
from benchmarks.peer_rows import Peer, Row, captum_rows, inseq_rows
from benchmarks.timing import in_a_process, interleaved, once, peak_bytes, warm_up
from whence.core.progress import Progress

EXAMPLES = """  make bench-env
  .venv/bench/bin/python -m benchmarks.peers
  .venv/bench/bin/python -m benchmarks.peers --quick --repeats 1
  .venv/bench/bin/python -m benchmarks.peers --peers inseq --model llama --methods saliency occlusion
  .venv/bench/bin/python -m benchmarks.peers --device cuda --json peers.json --write docs/performance.md
"""
PEERS = ("inseq", "captum")
# How far scores may be from the peer's, beside the largest, by the bytes of a number.
TOLERANCE = {8: 1e-5, 4: 5e-3, 2: 0.3}
# Points that are enough to compare scores, as both use the same.
FEW = 3


@dataclass(frozen=True)
class Line:
    """What was measured of one call.

    Attributes:
        case: The model and the lengths.
        row: The name of the row.
        peer: The peer.
        seconds: Seconds of a run of the peer over all steps, the median, or None where it fails.
        whence: Seconds of whence, the median.
        steps: Steps that the peer was asked for.
        points: Points or samples that it was asked for.
        factor: What its time was multiplied with.
        difference: Largest difference of the scores, beside the largest; None where definitions differ.
        note: Why there is no time of the peer.
        peer_peak: Bytes of the peer above the model, in a run with so many steps and points, or None.
        whence_peak: Bytes of whence above the model, or None.
    """

    case: str
    row: str
    peer: str
    seconds: float | None
    whence: float
    steps: int
    points: int
    factor: float
    difference: float | None
    note: str = ""
    peer_peak: int | None = None
    whence_peak: int | None = None


@dataclass(frozen=True)
class Pair:
    """A peer and whence with the same text, each with weights of its own."""

    peer: Peer
    model: whence.Model
    text: Text

    def ask(self, options: Mapping[str, Any]) -> np.ndarray:
        """Whence's scores."""
        out = self.model.attribute(list(self.text.source), list(self.text.generated), progress=False, **options)
        assert isinstance(out, whence.Attribution)
        return out.scores.values


def rows_of(peer: str, case: Case) -> dict[str, Row]:
    """The calls that are compared with a peer's."""
    found = inseq_rows(case.source) if peer == "inseq" else captum_rows()
    # Four segments are fewer than the steps, and forward mode is chosen, only where there are many steps.
    return {name: row for name, row in found.items() if "4 segments" not in name or case.generated > case.source}


def difference(pair: Pair, row: Row, steps: int) -> float:
    """Largest difference of the scores of so many steps from whence's, beside the largest.

    Raises:
        ValueError: A score that the one has, the other has not.
    """
    count = len(pair.text.generated) if row.whole else steps
    values, first = pair.peer.run(row, count, FEW)
    theirs = row.read(values)
    options = row.compared(FEW)
    if options.get("steps") == "whole":
        options["steps"] = [(first, first + count)]
    mine = row.mine(pair.ask(options))
    mine = mine if "steps" in options else mine[first : first + count]
    # Inseq's axis has the last token as well, which nothing sees.
    theirs = theirs[:, : mine.shape[1]]
    mine = mine[:, : theirs.shape[1]]
    seen = ~np.isnan(mine)
    if np.isnan(theirs[seen]).any():
        raise ValueError("the peer has no score where whence has one")
    return float(np.abs(theirs - mine)[seen].max() / np.abs(mine[seen]).max())


def affordable(pair: Pair, row: Row, points: int, budget: float, device: str) -> tuple[int, int]:
    """Steps and points that the peer can be asked for within a number of seconds.

    Args:
        pair: Whom to ask.
        row: What.
        points: Points or samples, if it could have all.
        budget: The seconds.
        device: Where the models run.
    """
    count = len(pair.text.generated)
    if row.whole:
        return count, points
    few = min(points, FEW)
    one = once(lambda: pair.peer.run(row, 1, few), device) * (points / few if row.points else 1)
    if one > budget and row.points:
        return 1, max(few, int(points * budget / one))
    return max(1, min(count, int(budget / one))), points


def measure(pair: Pair, case: Case, peer: str, name: str, row: Row, given: argparse.Namespace) -> Line:
    """Compare the scores of a call, then time both."""
    points = row.most or given.points
    options, count = row.asked(points), len(pair.text.generated)
    far, note, steps, used = None, "", count, points
    try:
        if row.same is not None:
            far = difference(pair, row, 1)
        else:
            pair.peer.run(row, 1 if not row.whole else count, min(points, FEW))
        steps, used = affordable(pair, row, points, given.peer_seconds, given.device)
    # A peer may fail in any way, and the table says in which.
    except Exception as error:
        note = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    if far is not None and not far <= TOLERANCE[pair.model.dtype.itemsize]:
        raise RuntimeError(f"{case}, {name}: the scores differ from {peer}'s by {far:.1e} of the largest")
    calls = {} if note else {"peer": lambda: pair.peer.run(row, steps, used)}
    found = interleaved({**calls, "whence": lambda: pair.ask(options)}, given.repeats, given.device, warm_ups=0)
    factor = count / steps * (points / used)
    seconds = None if note else found["peer"].median * factor
    return Line(str(case), name, peer, seconds, found["whence"].median, steps, used, factor, far, note)


def peaks(line: Line, case: Case, given: argparse.Namespace, folder: Path) -> Line:
    """The line with the memory of both, each measured in a process of its own."""
    common = [*same_again(given, folder), "--model", case.model, "--lengths", f"{case.source}+{case.generated}"]
    common += ["--peers", line.peer, "--methods", line.row, "--points", str(given.points)]
    found: dict[str, int | None] = {"peer": None, "whence": None}
    for key in found if not line.note else ("whence",):
        which = json.dumps({"tool": key, "steps": line.steps, "points": line.points})
        found[key] = in_a_process("benchmarks.peers", [*common, "--alone", which])["peak"]
    return replace(line, peer_peak=found["peer"], whence_peak=found["whence"])


def alone(given: argparse.Namespace, case: Case, folder: Path) -> int:
    """Bytes above the model of the one call that this process is there for."""
    asked, peer = json.loads(given.alone), given.peers[0]
    row = rows_of(peer, case)[given.methods[0]]
    if asked["tool"] == "peer":
        one = peer_of(peer, row.method, given, case, folder)
        # What a tool loads on first use belongs to no call.
        one.run(rows_of(peer, case)["input_x_gradient"], 1, 1)
        return peak_bytes(lambda: one.run(row, asked["steps"], asked["points"]), given.device)
    plain, tokenizer, text = opened(given, case, folder)
    model = whence.load(plain, tokenizer=tokenizer)
    warm_up(model, text)
    options = row.asked(row.most or given.points)
    call = (list(text.source), list(text.generated))
    return peak_bytes(lambda: model.attribute(*call, progress=False, **options), given.device)


def peer_of(peer: str, method: str, given: argparse.Namespace, case: Case, folder: Path) -> Peer:
    """A peer with weights of its own; Inseq reads attention, and values, of eager attention only."""
    attention = "eager" if method in ("attention", "value_zeroing") else "sdpa"
    return {"inseq": Inseq, "captum": Captum}[peer](*opened(given, case, folder, attention))


def markdown(lines: Sequence[Line], found: Mapping[str, Any], repeats: int) -> str:
    """The lines as a table, and the machine they are of."""
    head = ["call", "peer", "whence", "faster", "memory of peer", "of whence", "scores differ by"]
    rows = []
    for line in lines:
        rough = "~" if line.factor > 1 else ""
        theirs = "-" if line.seconds is None else rough + report.seconds(line.seconds)
        ratio = "-" if line.seconds is None else rough + report.times(line.seconds / line.whence)
        sizes = ["-" if peak is None else report.mebibytes(peak) for peak in (line.peer_peak, line.whence_peak)]
        far = "-" if line.difference is None else f"{line.difference:.0e}"
        rows.append([f"{line.case}: {line.row} ({line.peer})", theirs, report.seconds(line.whence), ratio, *sizes, far])
    runs = f"Medians of {repeats} runs" if repeats > 1 else "Single runs"
    failed = [f"{line.peer}, {line.row}: {line.note}" for line in lines if line.note]
    part = [
        f"{line.case} {line.row} ({line.peer}): {line.steps} steps, {line.points} points"
        for line in lines
        if line.factor > 1
    ]
    notes = [f"{runs}, taking turns. {report.machine_note(found)}"]
    if part:
        notes.append(f"Times with ~ were measured on a part and multiplied: {'; '.join(part)}.")
    if failed:
        notes.append(f"Without a time: {'; '.join(dict.fromkeys(failed))}.")
    return report.table(head, rows) + "\n\n" + "\n\n".join(notes)


def command() -> argparse.ArgumentParser:
    """The options of the command."""
    made = make_parser("peers", __doc__, EXAMPLES)
    add_repeats(made)
    add_model(made, ("gpt2", "llama", "t5"))
    made.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, help="default: both")
    add_rows(made, list(dict.fromkeys([*inseq_rows(16), *captum_rows()])))
    add_no_memory(made)
    made.add_argument(
        "--peer-seconds", type=float, default=60.0, metavar="S", help="a peer's run may take so long (default: 60)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what was asked for."""
    given = parsed(command(), arguments)
    cases = cases_of(given, "8+6")
    found, lines = report.machine(given.device, given.dtype), []
    with checkpoints(given) as kept:
        folder = Path(kept)
        for case in cases:
            if given.alone is not None:
                print(json.dumps({"peak": alone(given, case, folder)}))
                return
            plain, tokenizer, text = opened(given, case, folder)
            model = whence.load(plain, tokenizer=tokenizer)
            for peer in given.peers:
                rows = rows_of(peer, case)
                kind = plain.config.model_type
                chosen = [name for name in given.methods if name in rows and kind in rows[name].families]
                with Progress(f"{case} {peer}", len(chosen)) as bar:
                    for name in chosen:
                        pair = Pair(peer_of(peer, rows[name].method, given, case, folder), model, text)
                        line = measure(pair, case, peer, name, rows[name], given)
                        lines.append(line if given.no_memory else peaks(line, case, given, folder))
                        print(markdown(lines[-1:], found, given.repeats).splitlines()[2], file=sys.stderr)
                        bar.advance()
    block = markdown(lines, found, given.repeats)
    figures = {"machine": found, "lines": [asdict(line) for line in lines]}
    report.keep(block, "peers", figures, json_file=given.json, page=given.write)


if __name__ == "__main__":
    main()
