"""``whence show``: a saved result, in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whence.cli.errors import readable_errors

EXAMPLES = """Examples:

whence show paris.json

whence show paris.json --width 200"""


def show(
    file: Annotated[Path, typer.Argument(help="A file written by --save or by Attribution.save.")],
    width: Annotated[int | None, typer.Option(min=20, help="Columns to use; by default the terminal's.")] = None,
) -> None:
    """Show a saved attribution."""
    with readable_errors():
        import whence

        whence.load_attribution(file).show(width=width)
