"""``whence methods``, ``step-functions`` and ``models``: what there is, from the registries themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whence.cli.errors import readable_errors
from whence.cli.options import PLUGIN
from whence.cli.plugins import load_plugins

METHODS_EXAMPLES = """Examples:

whence methods

whence methods integrated_gradients"""


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to read all about it.")] = None,
) -> None:
    """List the attribution methods, or describe one."""
    with readable_errors():
        from whence.methods import METHODS
        from whence.views.explain import description, places

        if name is not None:
            typer.echo(description(METHODS[name]))
            return
        rows = [("method", "cost for T steps, K features", "layer=", "models", "places", "papers", "what the score is")]
        for key in METHODS:
            method = METHODS[key]
            models = "all" if method.encoder_decoder else "decoder"
            where = ", ".join(place for place in places(method) if place != "here") or "here only"
            row = key, method.cost, "yes" if method.layer else "no", models, where, ", ".join(method.cites) or "-"
            rows.append((*row, method.title))
        _table(rows)
        typer.echo(
            "\nF is one forward pass. All methods take segments, spans of steps and batches. Where a place is listed, "
            "the method\nruns there as well as here. 'whence methods NAME' tells more about one."
        )


STEP_FUNCTIONS_EXAMPLES = """Examples:

whence step-functions

whence step-functions kl_divergence

whence step-functions --plugin my_functions.py"""


def step_functions(
    name: Annotated[str | None, typer.Argument(help="A step function, to read all about it.")] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help=PLUGIN)] = None,
) -> None:
    """List the step functions (the numbers that can be explained or reported), or describe one."""
    with readable_errors():
        from inspect import getdoc

        from whence.step_functions import STEP_FUNCTIONS

        load_plugins(plugin or [])
        if name is not None:
            typer.echo(getdoc(STEP_FUNCTIONS[name].fn) or f"{name} has no description.")
            return
        rows = [("step function", "unit", "target of", "needs", "options")]
        for key in STEP_FUNCTIONS:
            one = STEP_FUNCTIONS[key]
            kinds = "all methods" if one.differentiable else "perturbation" if one.attributable else "-"
            options = ", ".join(f"{option}={value}" for option, value in one.default_options.items())
            rows.append((key, one.unit, kinds, ", ".join(sorted(one.needs)) or "-", options or "-"))
        _table(rows)
        typer.echo(
            "\nNeeds: contrast is another continuation or source (--contrast, --contrast-source); other run a contrast "
            "that is run\non its own (--evaluate own, or another source); noisy runs under dropout."
        )


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


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        typer.echo("  ".join([*cells, row[-1]]))
