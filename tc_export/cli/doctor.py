# SPDX-License-Identifier: Apache-2.0
"""`tc-export doctor`: what is on this machine, and what is missing for each target."""

from __future__ import annotations

from typing import Annotated

import typer

from tc_export.cli.options import JsonOption, complete_target
from tc_export.cli.terminal import print_json, show

app = typer.Typer()


@app.command(epilog="Example: tc-export doctor --target rtx4090")
def doctor(
    target: Annotated[
        str | None,
        typer.Option(
            help="Look at this device only, or at a target's file.",
            show_default=False,
            autocompletion=complete_target,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is on this machine, what is missing here for each target, and how to get it."""
    from tc_export.targets import list_targets, load_target

    devices = list_targets() if target is None else [load_target(target)]

    from tc_export.doctor import examine
    from tc_export.doctor.report import report_as_json, report_as_tables

    report = examine(devices)
    if as_json:
        print_json(report_as_json(report))
    else:
        show(report_as_tables(report))
