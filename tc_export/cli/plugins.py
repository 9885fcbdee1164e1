# SPDX-License-Identifier: Apache-2.0
"""`tc-export plugins`: the native code of a device's TensorRT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tc_export.cli.options import JsonOption, TargetOption
from tc_export.cli.terminal import Terminal, print_json, say

app = typer.Typer(no_args_is_help=True, help="Native code for a device's TensorRT.")


@app.callback(epilog="Example: tc-export plugins build --target rtx4090")
def plugins() -> None:
    """Keep `build` a verb of its own below `plugins`: an app of one command would lose its name."""


@app.command("build", epilog="Example: tc-export plugins build --target rtx4090")
def build_plugins(
    target: TargetOption,
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
    with Terminal(stderr=True).status(f"plugins for {device.name}") as status:
        library = run_build(
            device,
            tensorrt_root=tensorrt_root,
            on_step=lambda phrase: status.update(f"plugins for {device.name}: {phrase}"),
        )
    if as_json:
        print_json({**asdict(library), "path": str(library.path)})
    else:
        say(f"{library.path} ({'unchanged' if library.cached else 'built'})")
