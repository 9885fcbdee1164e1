# SPDX-License-Identifier: Apache-2.0
"""`tc-export inspect`: what a bundle is."""

from __future__ import annotations

import typer

from tc_export.cli.options import BundleArgument, JsonOption
from tc_export.cli.terminal import print_json, show

app = typer.Typer()


@app.command(epilog="Example: tc-export inspect out/llava-cpu")
def inspect(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Show what a bundle is, what it was made from, and what it holds."""
    from tc_export.bundle import inspect as inspect_bundle
    from tc_export.cli.tables import bundle_tables

    facts = inspect_bundle(bundle)
    if as_json:
        print_json(facts)
    else:
        show(bundle_tables(facts))
