# SPDX-License-Identifier: Apache-2.0
"""The command line: each verb parses, calls one function, and prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tc_export import __version__
from tc_export.cli.ask import app as ask_command
from tc_export.cli.build_commands import app as build_commands
from tc_export.cli.device_commands import app as device_commands
from tc_export.cli.missing_packages import named
from tc_export.cli.options import BundleArgument, JsonOption, NativeOption, ThreadsOption
from tc_export.errors import CheckFailed, TcExportError, UsageError

# Imports of a verb's own machinery stand in the verb: `--help` need not load PyTorch.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Export TC-LLaVA video-language models to engines that are checked against PyTorch.",
)
app.add_typer(build_commands)
app.add_typer(ask_command)
app.add_typer(device_commands)
console = Console(stderr=True)


@app.callback()
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
) -> None:
    context.obj = debug


@app.command(
    epilog="Examples: tc-export parity out/llava-cpu --json; "
    "tc-export parity out/llava-cpu --tasks --items 20; tc-export parity out/llava-orin --graphs"
)
def parity(
    bundle: BundleArgument,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint it was built from. By default where it was then.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        bool,
        typer.Option(
            "--tasks", help="Compare answers to questions about generated clips, not tensors."
        ),
    ] = False,
    items: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --tasks: items of every kind and grade. By default 10: 360 in all.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="With --tasks: accuracy that the engine may lose. By default 0.02.",
            show_default=False,
        ),
    ] = None,
    liveness_threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="With --tasks: how far its logits may move otherwise than PyTorch's when frames "
            "change places, as a share of that movement. By default 0.1.",
            show_default=False,
        ),
    ] = None,
    graphs: Annotated[
        bool,
        typer.Option(
            "--graphs",
            help="Judge the exported graphs in ONNX Runtime instead of the engine, where its "
            "device is not here.",
        ),
    ] = False,
    native: NativeOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle's engine with the PyTorch model; exit code 1 where they differ."""
    asked = {"--items": items, "--threshold": threshold, "--liveness-threshold": liveness_threshold}
    given = {name: value for name, value in asked.items() if value is not None}
    if tasks:
        settings: dict[str, Any] = {"checkpoint": checkpoint, "graphs": graphs, "native": native}
        settings |= {"threads": threads}
        return _task_parity(bundle, given, settings, as_json=as_json)
    if given:
        raise UsageError(f"{', '.join(given)} says something of --tasks only", hint="add --tasks")
    from tc_export.parity.of_bundle import check_bundle
    from tc_export.parity.tensors.report import as_json as result_as_json
    from tc_export.parity.tensors.report import as_table, failures

    result = check_bundle(bundle, checkpoint, graphs=graphs, native=native, threads=threads)
    if as_json:
        print(json.dumps(result_as_json(result), indent=2))
    else:
        Console().print(as_table(result))
    if not result.passed:
        raise CheckFailed(
            "the engine does not compute what PyTorch computes:\n" + "\n".join(failures(result))
        )


def _task_parity(
    bundle: Path, given: dict[str, Any], settings: dict[str, Any], *, as_json: bool
) -> None:
    """Ask both sides, and print what came out."""
    from rich.progress import Progress

    from tc_export.parity.answers.accuracy import Thresholds
    from tc_export.parity.answers.of_bundle import DEFAULT_ITEMS_EACH, check_answers
    from tc_export.parity.answers.report import task_failures, tasks_as_json, tasks_as_tables

    usual = Thresholds()
    thresholds = Thresholds(
        loss=given.get("--threshold", usual.loss),
        liveness=given.get("--liveness-threshold", usual.liveness),
    )
    items_each = given.get("--items", DEFAULT_ITEMS_EACH)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("asking both sides", total=None)
        result = check_answers(
            bundle,
            items_each=items_each,
            thresholds=thresholds,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
            **settings,
        )
    if as_json:
        print(json.dumps(tasks_as_json(result), indent=2))
    else:
        Console().print(tasks_as_tables(result))
    if not result.passed:
        raise CheckFailed(
            "the engine does not answer as PyTorch does:\n" + "\n".join(task_failures(result))
        )


@app.command(epilog="Example: tc-export inspect out/llava-cpu")
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle is, what it was made from, and what it holds."""
    from tc_export.bundle import inspect as inspect_bundle

    facts = inspect_bundle(bundle)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(title=str(bundle), show_header=False)
    for name, value in facts.items():
        if name not in ("bundle", "stages", "files"):
            table.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
    files = Table("file", "bytes")
    for path, size in facts["files"].items():
        files.add_row(path, f"{size:,}")
    out = Console()
    out.print(table)
    out.print(files)


@app.command(epilog="Example: tc-export verify out/llava-cpu")
def verify(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Check every file of a bundle against its manifest; exit code 1 names those that differ."""
    from rich.progress import DownloadColumn, Progress

    from tc_export.bundle import verify as verify_bundle

    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("reading the bundle", total=None)
        problems = verify_bundle(
            bundle, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    if as_json:
        print(
            json.dumps(
                {
                    "passed": not problems,
                    "problems": [
                        {"path": x.path, "damage": str(x.damage), "detail": x.detail}
                        for x in problems
                    ],
                },
                indent=2,
            )
        )
    if problems:
        raise CheckFailed(
            f"{len(problems)} file(s) of {bundle} are not what the manifest says:\n"
            + "\n".join(f"  {problem}" for problem in problems),
            hint="build the bundle again, or get it again from where it was built",
        )
    if not as_json:
        print(f"{bundle}: every file is what the manifest says")


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, and turn every error into a message and an exit code."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        with named():
            app(arguments, standalone_mode=True)
    except TcExportError as error:
        if debug:
            raise
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        if error.hint:
            console.print(f"  [dim]{escape(error.hint)}[/dim]", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        console.print(
            f"[red]internal error:[/red] {escape(f'{type(error).__name__}: {error}')}",
            highlight=False,
            soft_wrap=True,
        )
        console.print("  [dim]run it again with --debug, and report what it prints[/dim]")
        sys.exit(TcExportError.exit_code)
