# SPDX-License-Identifier: Apache-2.0
"""`tc-export parity`: whether a bundle's engine computes, or answers, what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
    from rich.console import RenderableType

app = typer.Typer()


@app.command(
    epilog="Examples: tc-export parity out/llava-cpu --json; "
    "tc-export parity out/llava-cpu --by-layer; "
    "tc-export parity out/llava-cpu --tasks --items 20; "
    "tc-export parity out/llava-int4-cpu --tasks --most-lost 1; "
    "tc-export parity out/llava-orin --graphs"
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
    most_lost: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="With --tasks, where weights are quantised: points of accuracy that each kind of "
            "question may have lost by it. By default 2.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="With --tasks, where weights are quantised: fail also where so few items do not "
            "show that no kind lost more.",
        ),
    ] = False,
    unquantised: Annotated[
        Path | None,
        typer.Option(
            help="With --tasks: the checkpoint that was quantised. By default where it was then.",
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
            help="Folder to write report.html and report.json to. With --by-layer or --tasks that "
            "comparison is made too, and the report has its heat map or its tables.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a bundle's engine with the PyTorch model; exit code 1 where they differ."""
    of_cost: dict[str, Any] = {
        "--most-lost": most_lost,
        "--strict": strict or None,
        "--unquantised": unquantised,
    }
    of_tasks: dict[str, Any] = {"--items": items, "--threshold": threshold}
    of_tasks |= {"--liveness-threshold": liveness_threshold} | of_cost
    given = {name: value for name, value in of_tasks.items() if value is not None}
    if given and not tasks:
        verb = "apply" if len(given) > 1 else "applies"
        raise UsageError(f"{', '.join(given)} {verb} only with --tasks", hint="add --tasks")
    if tasks and by_layer:
        raise UsageError(
            "--tasks and --by-layer are two different comparisons", hint="give one of them"
        )

    from tc_export.parity.judged_bundle import (
        check_quantised,
        check_room_for_clips,
        find_checkpoint,
    )

    find_checkpoint(bundle, checkpoint)  # a wrong path must not wait for PyTorch
    check_quantised(bundle, [name for name in of_cost if name in given], unquantised)
    if tasks:
        check_room_for_clips(bundle)
    settings: dict[str, Any] = {"checkpoint": checkpoint, "graphs": graphs, "native": native}
    settings |= {"threads": threads}
    in_memory = settings | {"memory_bytes": None if memory is None else round(memory * 1e9)}
    if report is not None:
        from tc_export.parity.report.write import make_report_folder

        make_report_folder(report, bundle)
    comparisons = []
    if report is not None or not (tasks or by_layer):
        comparisons.append(_compare_tensors(bundle, in_memory))
    if by_layer:
        comparisons.append(_compare_layers(bundle, in_memory))
    if tasks:
        comparisons.append(_compare_answers(bundle, given, settings))
    document = comparisons[0].document | {x.key: x.document for x in comparisons[1:]}
    if report is not None:
        flags = {"--graphs": graphs, "--by-layer": by_layer, "--tasks": tasks, **given}
        _write_report(report, bundle, document, comparisons, flags)
    if as_json:
        print_json(document)
    for comparison in comparisons:
        if not as_json:
            show(comparison.tables)
        elif comparison.warning:
            Terminal(stderr=True).print(comparison.warning)
    failures = [f"{x.headline}:\n" + "\n".join(x.failures) for x in comparisons if not x.passed]
    if failures:
        raise ReportedFailure("\n".join(failures))


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """What was found, for programs and for people.

    `key` is its place in a report that begins with another one. Where it did not pass, `failures`
    are lines, and `headline` is what they say together. `warning` is what has to be told with JSON
    too.
    """

    key: str
    passed: bool
    document: dict[str, Any]
    tables: RenderableType
    headline: str
    failures: Sequence[str]
    warning: str | None = None


@contextmanager
def _progress(description: str) -> Iterator[Callable[..., None]]:
    """A bar on the terminal, as long as it lasts; yields what moves it."""
    from rich.progress import Progress

    console = Terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(description, total=None)

        def advance(done: float, total: float | None, what: str = description) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        yield advance


def _compare_tensors(bundle: Path, settings: dict[str, Any]) -> _Comparison:
    from tc_export.parity.tensors.check_bundle import check_bundle
    from tc_export.parity.tensors.report import as_table, failures, headline, result_as_json

    with _progress("comparing with PyTorch") as advance:
        result = check_bundle(bundle, advance=advance, **settings)
    return _Comparison(
        key="tensors",
        passed=result.passed,
        document=result_as_json(result),
        tables=as_table(result),
        headline=headline(result),
        failures=failures(result),
    )


def _compare_layers(bundle: Path, settings: dict[str, Any]) -> _Comparison:
    from tc_export.parity.layers.check_bundle import check_bundle_by_layer
    from tc_export.parity.layers.report import (
        by_layer_as_json,
        by_layer_as_table,
        by_layer_failure,
    )

    with _progress("comparing with PyTorch") as advance:
        result = check_bundle_by_layer(
            bundle, advance=lambda what, done, total: advance(done, total, what), **settings
        )
    return _Comparison(
        key="by_layer",
        passed=result.passed,
        document=by_layer_as_json(result),
        tables=by_layer_as_table(result),
        headline="the graphs do not compute what PyTorch computes",
        failures=[] if result.passed else [by_layer_failure(result)],
    )


def _compare_answers(bundle: Path, given: dict[str, Any], settings: dict[str, Any]) -> _Comparison:
    from tc_export.parity.answers.accuracy import Thresholds
    from tc_export.parity.answers.check_bundle import DEFAULT_ITEMS_EACH, check_answers
    from tc_export.parity.answers.report import (
        task_failures,
        tasks_as_json,
        tasks_as_tables,
        tasks_headline,
    )
    from tc_export.parity.cost.report import cost_failures, cost_warning
    from tc_export.parity.cost.result import CostLimits

    usual, usual_cost = Thresholds(), CostLimits()
    with _progress("asking all sides") as advance:
        result = check_answers(
            bundle,
            unquantised=given.get("--unquantised"),
            items_each=given.get("--items", DEFAULT_ITEMS_EACH),
            thresholds=Thresholds(
                loss=given.get("--threshold", usual.loss),
                liveness=given.get("--liveness-threshold", usual.liveness),
            ),
            cost_limits=CostLimits(
                most_lost=given.get("--most-lost", 100 * usual_cost.most_lost) / 100,
                strict=given.get("--strict", usual_cost.strict),
            ),
            advance=advance,
            **settings,
        )
    return _Comparison(
        key="tasks",
        passed=result.passed,
        document=tasks_as_json(result),
        tables=tasks_as_tables(result),
        headline=tasks_headline(result),
        failures=[*task_failures(result), *cost_failures(result.cost)],
        warning=cost_warning(result.cost),
    )


def _write_report(
    folder: Path,
    bundle: Path,
    document: dict[str, Any],
    comparisons: Sequence[_Comparison],
    options: Mapping[str, Any],
) -> None:
    from tc_export.parity.report.write import origin_of, write_report

    failures = [line for comparison in comparisons for line in comparison.failures]
    command = ["tc-export", "parity", str(bundle)]
    for name, value in options.items():
        command += [name] if value is True else [name, str(value)] if value is not False else []
    write_report(folder, document, failures, origin_of(bundle, command))
    Terminal(stderr=True).print(f"report: {folder / 'report.html'}")
