"""Errors as people read them on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from whence.core.errors import WhenceError


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn whence's errors into one line on standard error and exit status 1."""
    try:
        yield
    except WhenceError as error:
        typer.echo(f"whence: {error}", err=True)
        raise typer.Exit(1) from None
