"""``whence methods`` and ``whence models``: what there is, from the registries themselves."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import typer

from whence.cli.values import readable_errors

METHODS_EXAMPLES = """Examples:

whence methods

whence methods integrated_gradients"""


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to read all about it.")] = None,
) -> None:
    """List the attribution methods, or describe one."""
    with readable_errors():
        from whence.methods import METHODS

        if name is not None:
            _describe(METHODS[name])
            return
        rows = [("method", "cost for T steps, K features", "what the score is")]
        rows += [(key, METHODS[key].cost, METHODS[key].title) for key in METHODS]
        _table(rows)
        typer.echo("\nF is one forward pass. 'whence methods NAME' tells more about one.")


def models() -> None:
    """List the bundled models and the architectures that are known by name."""
    with readable_errors():
        from whence.models import bundled
        from whence.models.families import known_model_types

        typer.echo("Bundled models:\n")
        _table([(f"whence/{name}", bundled.summary(name)) for name in bundled.NAMES])
        known = ", ".join(sorted(known_model_types()))
        typer.echo(f"\nArchitectures known by name: {known}.")
        typer.echo("Others are recognised by structure where that is unambiguous.")


def _describe(method: Any) -> None:
    typer.echo(f"{method.name}: {method.title}\n")
    typer.echo(inspect.cleandoc(method.__doc__ or ""))
    typer.echo(f"\nCost:      {method.cost}")
    typer.echo(f"Needs:     {', '.join(sorted(need.value for need in method.needs))}")
    typer.echo(f"Papers:    {', '.join(method.cites)}")
    typer.echo(f"Additive:  {'yes' if method.additive else 'no'} (a span's score is the sum of its steps' scores)")
    options = [f"{field.name}={field.default!r}" for field in dataclasses.fields(method)]
    typer.echo(f"Options:   {', '.join(options) or '(none)'}")


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[-1]]))
