# SPDX-License-Identifier: Apache-2.0
"""The command line's verbs about devices: which there are, what fits them, what is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tc_export.cli.options import JsonOption, MaxLengthOption, PrecisionOption

# Imports of a verb's own machinery stand in the verb: `--help` need not load PyTorch.

app = typer.Typer()


@app.command(epilog="Example: tc-export targets --json")
def targets(as_json: JsonOption = False) -> None:
    """List the devices that can be built for; figures in doubt have a mark."""
    from tc_export.targets import list_targets

    found = list_targets()
    if as_json:
        print(json.dumps([target.model_dump(mode="json") for target in found], indent=2))
        return
    from tc_export.cli.target_table import as_table

    Console().print(as_table(found))


@app.command(
    epilog="Example: tc-export plan --checkpoint llava-1.5-7b-hf --target orin --frames 16"
)
def plan(
    checkpoint: Annotated[
        Path, typer.Option(help="Hugging Face folder, or its config.json alone.")
    ],
    target: Annotated[str, typer.Option(help="Device, or the path of a target's file.")] = "cpu",
    precision: PrecisionOption = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a question.")] = 16,
    max_length: MaxLengthOption = None,
    chart: Annotated[
        Path | None, typer.Option(help="Draw memory over frames to this PNG.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict whether a model fits a device, how many frames do, and how fast it would be.

    Nothing is built, and no weight is read. Exit code 0 says that the plan was made, not that the
    model fits.
    """
    from tc_export.checkpoint.hf_config import read_config
    from tc_export.plan.planner import make_plan
    from tc_export.plan.report import as_json as plan_as_json
    from tc_export.plan.report import as_tables
    from tc_export.targets import load_target, read_precisions

    device = load_target(target)
    precisions = read_precisions(precision, device)
    folder = checkpoint.parent if checkpoint.name == "config.json" else checkpoint
    made = make_plan(read_config(folder).model, device, precisions, frames, max_length)
    if chart is not None:
        from tc_export.plan.chart import draw_chart

        draw_chart(made, chart)
    if as_json:
        print(json.dumps(plan_as_json(made), indent=2))
    else:
        Console().print(as_tables(made))


@app.command(epilog="Example: tc-export doctor --target rtx4090")
def doctor(
    target: Annotated[
        str | None,
        typer.Option(help="Look at this device only, or at a target's file.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is on this machine, what each target would lack here, and what mends it."""
    from tc_export.doctor import examine
    from tc_export.doctor.report import as_json as report_as_json
    from tc_export.doctor.report import as_tables
    from tc_export.targets import list_targets, load_target

    report = examine(list_targets() if target is None else [load_target(target)])
    if as_json:
        print(json.dumps(report_as_json(report), indent=2))
    else:
        Console().print(as_tables(report))


plugins_app = typer.Typer(no_args_is_help=True, help="Native code for a device's TensorRT.")
app.add_typer(plugins_app, name="plugins")


@plugins_app.command("build", epilog="Example: tc-export plugins build --target rtx4090")
def build_plugins(
    target: Annotated[str, typer.Option(help="Device, or the path of a target's file.")],
    tensorrt_root: Annotated[
        Path | None,
        typer.Option(
            help="Folder of TensorRT's headers. By default those of the package registry.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compile the TensorRT plugins for a device; done once for each state of their sources."""
    from dataclasses import asdict

    from tc_export.native.build import build_plugins as run_build
    from tc_export.targets import load_target

    device = load_target(target)
    console = Console(stderr=True)
    with console.status(f"plugins for {device.name}") as status:
        library = run_build(
            device,
            tensorrt_root=tensorrt_root,
            on_step=lambda phrase: status.update(f"plugins for {device.name}: {phrase}"),
        )
    if as_json:
        print(json.dumps({**asdict(library), "path": str(library.path)}, indent=2))
    else:
        print(f"{library.path} ({'unchanged' if library.cached else 'built'})")
