"""``whence show``: a saved result, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whence.cli.errors import readable_errors
from whence.cli.options import AGGREGATE, PLUGIN
from whence.cli.plugins import load_plugins

EXAMPLES = """Examples:

whence show paris.json

whence show paris.json --width 200

whence show paris.json --aggregate "words,normalize"

whence show inseq.json"""


def show(
    file: Annotated[Path, typer.Argument(help="A file written by --save, Attribution.save or Inseq.")],
    aggregate: Annotated[list[str] | None, typer.Option(help=AGGREGATE)] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help=PLUGIN)] = None,
    width: Annotated[int | None, typer.Option(min=20, help="Columns to use; by default the terminal's.")] = None,
) -> None:
    """Show the attributions in a file."""
    with readable_errors():
        import whence

        load_plugins(plugin or [])
        out = whence.Attributions.load(file).aggregate(*(aggregate or ()))
        (out[0] if len(out) == 1 else out).show(width=width)
