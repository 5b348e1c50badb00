"""The command line: ``whence attribute``, ``methods``, ``step-functions``, ``models``, ``show``, ``serve-model``.

Light until one runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from whence.cli import attribute, lists, serve_model, show

app = typer.Typer(
    name="whence",
    help="Which parts of the input made the model generate this?",
    epilog='Try: whence attribute "Once upon a time" --method integrated_gradients',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("attribute", epilog=attribute.EXAMPLES)(attribute.attribute)
app.command("methods", epilog=lists.METHODS_EXAMPLES)(lists.methods)
app.command("step-functions", epilog=lists.STEP_FUNCTIONS_EXAMPLES)(lists.step_functions)
app.command("models")(lists.models)
app.command("show", epilog=show.EXAMPLES)(show.show)
app.command("serve-model", epilog=serve_model.EXAMPLES)(serve_model.serve_model)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"whence {version('whence')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Which parts of the input made the model generate this?"""
