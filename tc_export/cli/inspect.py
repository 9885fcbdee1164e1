# SPDX-License-Identifier: Apache-2.0
"""`tc-export inspect`: what a bundle is, or a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tc_export.cli.options import JsonOption
from tc_export.cli.terminal import print_json, show

app = typer.Typer()


@app.command(epilog="Example: tc-export inspect out/llava-cpu")
def inspect(
    folder: Annotated[Path, typer.Argument(help="A bundle, or a checkpoint.")],
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle is, what it was made from, and what it holds.

    Of a checkpoint it shows the formats of the weights, and what a library that quantised them has
    stored.
    """
    from tc_export.bundle import inspect as inspect_bundle
    from tc_export.bundle import is_bundle
    from tc_export.checkpoint.hf_config import CONFIG
    from tc_export.cli.tables import bundle_tables, checkpoint_tables

    if not is_bundle(folder) and (folder / CONFIG).is_file():
        from tc_export.checkpoint.describe import describe_checkpoint
        from tc_export.checkpoint.reader import open_checkpoint

        facts, tables = describe_checkpoint(open_checkpoint(folder)), checkpoint_tables
    else:
        facts, tables = inspect_bundle(folder), bundle_tables
    if as_json:
        print_json(facts)
    else:
        show(tables(facts))
