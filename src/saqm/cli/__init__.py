"""The command line: parse, call, print. Errors of the library end here: one line on stderr, exit code 2.

Exit codes: 0 fine, 1 some inputs were not scored, 2 wrong usage or a refusal, 130 stopped with Ctrl-C.
Results go to stdout, progress and remarks to stderr. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from saqm import __version__
from saqm.cli import (
    acting,
    data,
    evaluating,
    experiment,
    models,
    node,
    pulling,
    rating,
    reporting,
    scoring,
    serving,
    teaching,
)
from saqm.cli.terminal import say
from saqm.errors import SaqmError

app = typer.Typer(
    name="saqm",
    help="How good a medical image looks, with no reference image: 0 to 100, higher is better. Not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(scoring.commands)
app.add_typer(reporting.commands)
app.add_typer(evaluating.commands)
app.add_typer(acting.commands)
app.add_typer(rating.commands)
app.add_typer(teaching.commands)
app.add_typer(serving.commands)
app.add_typer(node.commands)
app.add_typer(pulling.commands)
app.add_typer(data.commands, name="data")
app.add_typer(models.commands, name="models")
app.add_typer(experiment.commands, name="experiment")


def main() -> None:
    """Entry point of the `saqm` command."""
    try:
        app()
    except SaqmError as error:
        say(f"error: {error}")
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"saqm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    del version  # its callback has done it
