# SPDX-License-Identifier: Apache-2.0
"""`tc-export parity`: whether a bundle's engine computes, or answers, what PyTorch does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from tc_export.parity.layers.result import ByLayerResult
    from tc_export.parity.tensors.check import ParityResult

app = typer.Typer()


@app.command(
    epilog="Examples: tc-export parity out/llava-cpu --json; "
    "tc-export parity out/llava-cpu --by-layer; "
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
    by_layer: Annotated[
        bool,
        typer.Option(
            "--by-layer",
            help="Say where they part: each layer of the graphs by itself and with those before "
            "it, frame by frame, and the first wrong node. An engine of TensorRT shows no layers; "
            "of such a bundle the graphs are judged.",
        ),
    ] = False,
    native: NativeOption = None,
    threads: ThreadsOption = None,
    memory: MemoryOption = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write report.html and report.json to. With --by-layer both comparisons "
            "are made, and the report has their heat map.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle's engine with the PyTorch model; exit code 1 where they differ."""
    asked = {"--items": items, "--threshold": threshold, "--liveness-threshold": liveness_threshold}
    given = {name: value for name, value in asked.items() if value is not None}
    if given and not tasks:
        verb = "apply" if len(given) > 1 else "applies"
        raise UsageError(f"{', '.join(given)} {verb} only with --tasks", hint="add --tasks")

    if tasks and report is not None:
        raise UsageError("--report is for the comparison of tensors", hint="leave --tasks out")
    if tasks and by_layer:
        raise UsageError(
            "--tasks and --by-layer are two different comparisons", hint="give one of them"
        )

    from tc_export.parity.judged_bundle import find_checkpoint

    find_checkpoint(bundle, checkpoint)  # a wrong path must not wait for PyTorch
    settings: dict[str, Any] = {"checkpoint": checkpoint, "graphs": graphs, "native": native}
    settings |= {"threads": threads}
    if tasks:
        _compare_answers(bundle, given, settings, as_json=as_json)
    else:
        settings |= {"memory_bytes": None if memory is None else round(memory * 1e9)}
        if report is not None:
            _report(bundle, settings, report, by_layer=by_layer, as_json=as_json)
        elif by_layer:
            _show_layers(_compare_layers(bundle, settings), as_json=as_json)
        else:
            _show_tensors(_compare_tensors(bundle, settings), as_json=as_json)


def _report(
    bundle: Path, settings: dict[str, Any], folder: Path, *, by_layer: bool, as_json: bool
) -> None:
    """Compare, write the report, and say the same on the terminal."""
    from tc_export.parity.report.write import make_report_folder, origin_of, write_report
    from tc_export.parity.tensors.report import failures, result_as_json

    make_report_folder(folder, bundle)
    result = _compare_tensors(bundle, settings)
    layers = _compare_layers(bundle, settings) if by_layer else None
    found, lines = result_as_json(result), failures(result)
    if layers is not None:
        from tc_export.parity.layers.report import by_layer_as_json

        found["by_layer"] = by_layer_as_json(layers)
    command = ["tc-export", "parity", str(bundle)]
    command += [
        flag for flag, on in (("--graphs", settings["graphs"]), ("--by-layer", by_layer)) if on
    ]
    write_report(folder, found, lines, origin_of(bundle, command))
    Terminal(stderr=True).print(f"report: {folder / 'report.html'}")
    if layers is not None and not layers.passed:
        _show_layers(layers, as_json=as_json)
    _show_tensors(result, as_json=as_json)


def _compare_tensors(bundle: Path, settings: dict[str, Any]) -> ParityResult:
    from rich.progress import Progress

    from tc_export.parity.tensors.check_bundle import check_bundle

    console = Terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("comparing with PyTorch", total=None)
        result = check_bundle(
            bundle,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
            **settings,
        )
    return result


def _show_tensors(result: ParityResult, *, as_json: bool) -> None:
    from tc_export.parity.tensors.report import as_table, failures, headline, result_as_json

    if as_json:
        print_json(result_as_json(result))
    else:
        show(as_table(result))
    if not result.passed:
        raise ReportedFailure(f"{headline(result)}:\n" + "\n".join(failures(result)))


def _compare_layers(bundle: Path, settings: dict[str, Any]) -> ByLayerResult:
    from rich.progress import Progress

    from tc_export.parity.layers.check_bundle import check_bundle_by_layer

    console = Terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("comparing with PyTorch", total=None)
        result = check_bundle_by_layer(
            bundle,
            advance=lambda what, done, total: progress.update(
                bar, description=what, completed=done, total=total
            ),
            **settings,
        )
    return result


def _show_layers(result: ByLayerResult, *, as_json: bool) -> None:
    from tc_export.parity.layers.report import (
        by_layer_as_json,
        by_layer_as_table,
        by_layer_failure,
    )

    if as_json:
        print_json(by_layer_as_json(result))
    else:
        show(by_layer_as_table(result))
    if not result.passed:
        raise ReportedFailure(
            "the graphs do not compute what PyTorch computes:\n" + by_layer_failure(result)
        )


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
