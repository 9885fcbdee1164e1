# SPDX-License-Identifier: Apache-2.0
"""`tc-export parity`: whether a bundle's engine computes, or answers, what PyTorch does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tc_export.cli.failure import ReportedFailure
from tc_export.cli.options import (
    BundleArgument,
    JsonOption,
    MemoryOption,
    NativeOption,
    ThreadsOption,
)
from tc_export.cli.terminal import Terminal, print_json, show
from tc_export.errors import UsageError

app = typer.Typer()


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
            help="With --tasks: how far the movement of its logits may differ from PyTorch's "
            "when frames change places, as a share of that movement. By default 0.1.",
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
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle's engine with the PyTorch model; exit code 1 where they differ."""
    asked = {"--items": items, "--threshold": threshold, "--liveness-threshold": liveness_threshold}
    given = {name: value for name, value in asked.items() if value is not None}
    if given and not tasks:
        verb = "apply" if len(given) > 1 else "applies"
        raise UsageError(f"{', '.join(given)} {verb} only with --tasks", hint="add --tasks")

    from tc_export.parity.judged_bundle import find_checkpoint

    find_checkpoint(bundle, checkpoint)  # a wrong path must not wait for PyTorch
    settings: dict[str, Any] = {"checkpoint": checkpoint, "graphs": graphs, "native": native}
    settings |= {"threads": threads}
    if tasks:
        _compare_answers(bundle, given, settings, as_json=as_json)
    else:
        settings |= {"memory_bytes": None if memory is None else round(memory * 1e9)}
        _compare_tensors(bundle, settings, as_json=as_json)


def _compare_tensors(bundle: Path, settings: dict[str, Any], *, as_json: bool) -> None:
    from rich.progress import Progress

    from tc_export.parity.tensors.check_bundle import check_bundle
    from tc_export.parity.tensors.report import as_table, failures, headline, result_as_json

    console = Terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("comparing with PyTorch", total=None)
        result = check_bundle(
            bundle,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
            **settings,
        )
    if as_json:
        print_json(result_as_json(result))
    else:
        show(as_table(result))
    if not result.passed:
        raise ReportedFailure(f"{headline(result)}:\n" + "\n".join(failures(result)))


def _compare_answers(
    bundle: Path, given: dict[str, Any], settings: dict[str, Any], *, as_json: bool
) -> None:
    from tc_export.parity.judged_bundle import check_room_for_clips

    check_room_for_clips(bundle)

    from rich.progress import Progress

    from tc_export.parity.answers.accuracy import Thresholds
    from tc_export.parity.answers.check_bundle import DEFAULT_ITEMS_EACH, check_answers
    from tc_export.parity.answers.report import task_failures, tasks_as_json, tasks_as_tables

    usual = Thresholds()
    thresholds = Thresholds(
        loss=given.get("--threshold", usual.loss),
        liveness=given.get("--liveness-threshold", usual.liveness),
    )
    console = Terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("asking both sides", total=None)
        result = check_answers(
            bundle,
            items_each=given.get("--items", DEFAULT_ITEMS_EACH),
            thresholds=thresholds,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
            **settings,
        )
    if as_json:
        print_json(tasks_as_json(result))
    else:
        show(tasks_as_tables(result))
    if not result.passed:
        raise ReportedFailure(
            "the engine does not answer as PyTorch does:\n" + "\n".join(task_failures(result))
        )
