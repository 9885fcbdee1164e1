# SPDX-License-Identifier: Apache-2.0
"""`tc-export targets`: which devices there are."""

from __future__ import annotations

import typer

from tc_export.cli.options import JsonOption
from tc_export.cli.terminal import print_json, show

app = typer.Typer()


@app.command(epilog="Example: tc-export targets --json")
def targets(as_json: JsonOption = False) -> None:
    """List the devices that can be built for; figures in doubt have a mark."""
    from tc_export.cli.tables import targets_table
    from tc_export.targets import list_targets

    found = list_targets()
    if as_json:
        print_json([target.model_dump(mode="json") for target in found])
    else:
        show(targets_table(found))
