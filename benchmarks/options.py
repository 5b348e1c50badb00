"""The options that the speed benchmarks have in common."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_models import SIZES, Text, load_model, make_model, make_text


@dataclass(frozen=True)
class Case:
    """A model with a text of given lengths.

    Attributes:
        model: A name of `benchmarks.bench_models.SIZES`, or a folder.
        source: Tokens of the prompt.
        generated: Tokens of the continuation.
    """

    model: str
    source: int
    generated: int

    def __str__(self) -> str:
        return f"{Path(self.model).name} {self.source}+{self.generated}"


def make_parser(module: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """A command with the common options.

    Args:
        module: Its name below `benchmarks`.
        description: What it does.
        examples: Lines for the end of its help.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=description,
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--device", default="cpu", help="such as cpu or cuda (default: cpu)")
    made.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    made.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    made.add_argument("--models", type=Path, metavar="FOLDER", help="keep the made checkpoints in this folder")
    made.add_argument("--quick", action="store_true", help="very small models, to see that the command works")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    made.add_argument("--write", type=Path, metavar="FILE", help="write the table between the marks of this page")
    # What a process of its own is asked for, where memory is measured.
    made.add_argument("--alone", help=argparse.SUPPRESS)
    return made


def add_repeats(made: argparse.ArgumentParser) -> None:
    """The option ``--repeats``."""
    made.add_argument("--repeats", type=int, default=5, help="timed runs of each call (default: 5)")


def add_model(made: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """The option ``--model``."""
    made.add_argument(
        "--model",
        nargs="+",
        default=list(default),
        metavar="NAME",
        help=f"{', '.join(SIZES)} (random weights), or a folder with a checkpoint (default: {' '.join(default)})",
    )


def add_rows(made: argparse.ArgumentParser, known: Sequence[str]) -> None:
    """The options of a command that measures rows of calls: which, and of what size.

    Args:
        made: The command.
        known: The names of its rows.
    """
    made.add_argument("--lengths", nargs="+", metavar="S+T", help="tokens of prompt and continuation (64+32, 16+256)")
    made.add_argument("--points", type=int, help="points on a path and samples of LIME (default: 50)")
    rows = list(known)
    made.add_argument("--methods", nargs="+", default=rows, choices=rows, metavar="ROW", help="default: all rows")


def cases_of(given: argparse.Namespace, quick: str) -> list[Case]:
    """The cases of such a command, whose number of points is set where it was not given.

    Args:
        given: The options.
        quick: Tokens of prompt and continuation with ``--quick``.
    """
    given.points = given.points or (5 if given.quick else 50)
    lengths = given.lengths or ([quick] if given.quick else ["64+32", "16+256"])
    return [Case(model, *map(int, one.split("+"))) for model in given.model for one in lengths]


def add_no_memory(made: argparse.ArgumentParser) -> None:
    """The option ``--no-memory``."""
    made.add_argument("--no-memory", action="store_true", help="time only; memory takes a process for each number")


def parsed(made: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options given, with the number of threads set."""
    given = made.parse_args(arguments)
    if "repeats" in given and given.repeats < 1:
        made.error("--repeats must be at least 1")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    return given


def checkpoints(given: argparse.Namespace) -> AbstractContextManager[Any]:
    """The folder of the checkpoints: the one that is kept, else one that is gone afterwards."""
    if given.models is None:
        return tempfile.TemporaryDirectory()
    given.models.mkdir(parents=True, exist_ok=True)
    return nullcontext(given.models)


def opened(given: argparse.Namespace, case: Case, folder: Path, attention: str = "sdpa") -> tuple[Any, Any, Text]:
    """The model of a case, its tokenizer, and the text."""
    where = make_model(case.model, Path(folder), quick=given.quick)
    model, tokenizer = load_model(where, device=given.device, dtype=given.dtype, attention=attention)
    return model, tokenizer, make_text(tokenizer, case.source, case.generated)


def same_again(given: argparse.Namespace, folder: Path) -> list[str]:
    """Arguments with which a process of its own sees the same models."""
    found = ["--device", given.device, "--dtype", given.dtype, "--models", str(folder)]
    found += ["--threads", str(torch.get_num_threads())]
    return [*found, "--quick"] if given.quick else found
