# SPDX-License-Identifier: Apache-2.0
"""The paper's Figures 3 and 4 in small: accuracy for the four masks, and over gamma.

    python benchmarks/ablation.py            trains what is missing, then reports
    python benchmarks/ablation.py --report   reports on what is stored, and trains nothing

Two processes may share the work, one of them with --last-first. Results are stored one by one in
benchmarks/results/ablation, the plots beside them. A run that is killed is run again; those before
it are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import matplotlib as mpl
import typer
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from tc_export.config import TemporalConfig
from tc_export.demo_model.ablation import (
    BY_GAMMA,
    BY_MASK,
    IN_ORDER,
    SETTINGS,
    AblationRun,
    missing_runs,
    read_results,
    run_setting,
    store,
)
from tc_export.errors import InputError, TcExportError
from tc_export.parity.answers.perturbations import Perturbation
from tc_export.tasks import Kind

FOLDER = Path(__file__).parent / "results" / "ablation"
STEPS = 700
FRAMES = (IN_ORDER, *Perturbation)
GUESS = mean(1 / len(kind.answers) for kind in Kind if kind.needs_time)
"""What one reaches on kinds that need time who knows nothing but the possible answers."""

console = Console()


def main(
    report: Annotated[bool, typer.Option("--report", help="Train nothing.")] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = STEPS,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    folder: Annotated[Path, typer.Option(help="Where results and plots are.")] = FOLDER,
    last_first: Annotated[
        bool, typer.Option("--last-first", help="Begin at the end, beside one that does not.")
    ] = False,
) -> None:
    """Train what is missing, draw the plots, and print the table."""
    try:
        if not report:
            train_missing(folder, steps, threads, last_first=last_first)
        runs = read_results(folder)
        if not runs:
            raise InputError(f"{folder} holds no results", hint="run it without --report")
        draw_all(folder, runs)
        print_tables(runs)
    except TcExportError as error:
        typer.echo(f"error: {error}", err=True)
        if error.hint:
            typer.echo(f"hint: {error.hint}", err=True)
        raise typer.Exit(error.exit_code) from error


def train_missing(folder: Path, steps: int, threads: int, *, last_first: bool) -> None:
    """Run after run, until none is missing: another process may make some of them meanwhile."""
    while missing := missing_runs(folder, steps, threads):
        temporal, training = missing[-1 if last_first else 0]
        console.print(f"{len(missing)} to go: {label(temporal)}, seed {training.seed}")
        store(folder, run_setting(temporal, training))


def label(temporal: TemporalConfig) -> str:
    return f"{temporal.mask}, gamma {temporal.gamma:g}"


def draw_all(folder: Path, runs: Sequence[AblationRun]) -> None:
    """One picture a figure: accuracy of kinds that need time, in order and perturbed."""
    mpl.use("Agg")
    masks, gammas = (keep(runs, settings) for settings in (BY_MASK, BY_GAMMA))
    names = [str(setting.mask).replace("_", "\n") for setting in BY_MASK]
    draw(folder / "masks.png", "attention mask (gamma 1)", names, masks)
    names = [f"{setting.gamma:g}" for setting in BY_GAMMA]
    draw(folder / "gamma.png", "gamma (frame_block_causal)", names, gammas)


def keep(
    runs: Sequence[AblationRun], settings: Sequence[TemporalConfig]
) -> list[list[AblationRun]]:
    """The runs of each setting, in the settings' order."""
    return [[run for run in runs if run.temporal == setting] for setting in settings]


def draw(path: Path, title: str, names: Sequence[str], groups: list[list[AblationRun]]) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axes, needs_time in zip(panels, (True, False), strict=True):
        for shift, frames in enumerate(FRAMES):
            draw_points(axes, groups, frames, (shift - 1.5) * 0.12, needs_time=needs_time)
        axes.set_title("kinds that need time" if needs_time else "static kinds")
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel(title)
        axes.grid(axis="y", alpha=0.3)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(-0.02, 1.02)
    panels[0].axhline(GUESS, color="grey", linewidth=1, linestyle=":", label="guessing")
    panels[0].set_ylabel("share of right answers")
    figure.legend(*panels[0].get_legend_handles_labels(), title="frames", loc="outside right upper")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def draw_points(
    axes: Axes,
    groups: list[list[AblationRun]],
    frames: str,
    shift: float,
    *,
    needs_time: bool,
) -> None:
    """Every seed as a dot, and their mean as a dash."""
    dots = [
        (place + shift, run.mean_accuracy(frames, needs_time=needs_time))
        for place, group in enumerate(groups)
        for run in group
    ]
    xs, ys = zip(*dots, strict=True) if dots else ((), ())
    drawn = axes.scatter(xs, ys, s=16, label=frames)
    for place, group in enumerate(groups):
        if group:
            middle = mean(run.mean_accuracy(frames, needs_time=needs_time) for run in group)
            reach = (place + shift - 0.05, place + shift + 0.05)
            axes.plot(reach, (middle, middle), color=drawn.get_facecolor()[0], linewidth=2)


def print_tables(runs: Sequence[AblationRun]) -> None:
    training = runs[0].training
    table = Table(
        title=f"% right after {training.steps} steps of {training.batch_size} items: mean over "
        "the seeds ± standard deviation",
        caption=f"kinds that need time, and static kinds in order; guessing: {100 * GUESS:.0f}",
    )
    table.add_column("setting")
    for heading in ("seeds", *FRAMES, "static"):
        table.add_column(heading, justify="right", no_wrap=True)
    for setting, group in zip(SETTINGS, keep(runs, SETTINGS), strict=True):
        if group:
            shares = [spread([run.mean_accuracy(frames) for run in group]) for frames in FRAMES]
            static = spread([run.mean_accuracy(needs_time=False) for run in group])
            table.add_row(label(setting), str(len(group)), *shares, static)
    console.print(table)
    console.print(kind_table(runs))


def kind_table(runs: Sequence[AblationRun]) -> Table:
    table = Table(title="% right by kind, frames in order: mean over the seeds")
    table.add_column("kind")
    there = [
        (setting, group)
        for setting, group in zip(SETTINGS, keep(runs, SETTINGS), strict=True)
        if group
    ]
    for setting, _ in there:
        name = str(setting.mask).replace("_", "\n")
        table.add_column(f"{name}\n{setting.gamma:g}", justify="right", vertical="bottom")
    for kind in Kind:
        means = [mean(run.accuracy[kind] for run in group) for _, group in there]
        table.add_row(kind.value, *(f"{100 * share:.0f}" for share in means))
    return table


def spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation in percent; one run has no deviation."""
    deviation = f"±{100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * mean(shares):.1f}{deviation}"


if __name__ == "__main__":
    typer.run(main)
