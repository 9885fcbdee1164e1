# SPDX-License-Identifier: Apache-2.0
"""The command line: its verbs, one file each, and what happens when one fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tc_export import __version__
from tc_export.cli import build, doctor, finish, inspect, parity, plan, plugins, targets, verify
from tc_export.cli.failure import INTERRUPTED, Failure, ReportedFailure, is_of_parser
from tc_export.cli.options import BundleArgument, JsonOption, NativeOption, ThreadsOption
from tc_export.cli.terminal import Terminal, print_json, say_piece

# Imports of a verb's own machinery stand in the verb: `--help` need not load PyTorch.

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Export TC-LLaVA video-language models to engines that are checked against PyTorch.",
)
app.add_typer(build.app)
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


@app.command(epilog='Example: tc-export ask out/llava-cpu --video cat.mp4 --question "What next?"')
def ask(
    bundle: BundleArgument,
    video: Annotated[Path, typer.Option(help="Video or image file.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Frames to sample evenly. By default as many as the bundle takes.",
            show_default=False,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Sample this many frames a second instead.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among so many; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among this much probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    native: NativeOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question about a video; the answer is printed as it comes."""
    from tc_export.cli.ask_video import ask as run_ask
    from tc_export.runtime.generation import GenerationConfig

    generation = GenerationConfig.read(
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        },
        where="the command line",
    )
    report = run_ask(
        bundle,
        video,
        question,
        generation,
        frames=frames,
        fps=fps,
        native=native,
        threads=threads,
        console=console,
        on_text=(lambda text: None) if as_json else say_piece,
    )
    if as_json:
        print_json(report)
    else:
        print()
        console.print(
            f"{report['new_tokens']} token(s); first after {report['time_to_first_token_s']:.2f} s"
            + (
                f", then {report['decode_tokens_per_s']:.1f} tokens/s"
                if report["decode_tokens_per_s"]
                else ""
            )
            + f"; {report['backend']}",
            style="dim",
            highlight=False,
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, and turn every error into a message and an exit code.

    With --json an error is a document on the standard output too, unless the check that failed has
    printed its own there.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = app(words, prog_name="tc-export", standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        if "--debug" in words and not is_of_parser(error):
            raise
        failure = Failure.of(error)
        if "--json" in words and not isinstance(error, ReportedFailure):
            failure.print_json()
        if failure.message:  # none where the help has been printed
            failure.print(console)
        code = failure.exit_code
    sys.exit(code or 0)
