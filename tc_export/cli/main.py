# SPDX-License-Identifier: Apache-2.0
"""The command line: its verbs, one file each, and what happens when one fails."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tc_export import __version__
from tc_export.cli import (
    ask,
    build,
    doctor,
    finish,
    init,
    inspect,
    parity,
    plan,
    plugins,
    quantize,
    targets,
    verify,
)
from tc_export.cli.failure import INTERRUPTED, Failure, ReportedFailure, is_of_parser
from tc_export.cli.signals import TERMINATED, termination_as_interrupt
from tc_export.cli.terminal import Terminal
from tc_export.missing_packages import missing_packages_named

# Imports of a verb's own machinery stand in the verb: `--help` need not load PyTorch.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Export TC-LLaVA video-language models to engines that are checked against PyTorch.",
)
app.add_typer(build.app)
app.add_typer(init.app)
app.add_typer(quantize.app)
app.add_typer(ask.app)
app.add_typer(finish.app)
app.add_typer(parity.app)
app.add_typer(inspect.app)
app.add_typer(verify.app)
app.add_typer(targets.app)
app.add_typer(plan.app)
app.add_typer(doctor.app)
app.add_typer(plugins.app, name="plugins")
console = Terminal(stderr=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tc-export {__version__}")
        raise typer.Exit


@app.callback(epilog="Example: tc-export build --help")
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Hold the options that stand before a verb; `main` reads --debug itself."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, and turn every error into a message and an exit code.

    With --json an error is a document on the standard output too, unless the check that failed has
    printed its own there.
    """
    words = sys.argv[1:] if arguments is None else arguments
    with termination_as_interrupt() as was_terminated:
        try:
            code = _run(words)
        except KeyboardInterrupt:  # it came while a failure was printed
            code = INTERRUPTED
    sys.exit(TERMINATED if was_terminated() else code)


def _run(words: list[str]) -> int:
    """Run the command line; return the exit code."""
    try:
        with missing_packages_named():
            return app(words, prog_name="tc-export", standalone_mode=False) or 0
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        if "--debug" in words and not is_of_parser(error):
            raise
        failure = Failure.of(error)
        if "--json" in words and not isinstance(error, ReportedFailure):
            failure.print_json()
        if failure.message:  # none where the help has been printed
            failure.print(console)
        return failure.exit_code
