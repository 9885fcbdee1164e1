# SPDX-License-Identifier: Apache-2.0
"""`tc-export verify`: whether a bundle is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tc_export.cli.failure import ReportedFailure
from tc_export.cli.options import BundleArgument, JsonOption
from tc_export.cli.terminal import Terminal, print_json, say

if TYPE_CHECKING:
    from tc_export.bundle import Problem

app = typer.Typer()


@app.command(epilog="Example: tc-export verify out/llava-cpu")
def verify(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Check every file of a bundle against its manifest; exit code 1 names those that differ."""
    problems = _read_with_bar(bundle)
    if as_json:
        found = [{"path": x.path, "damage": str(x.damage), "detail": x.detail} for x in problems]
        print_json({"passed": not problems, "problems": found})
    if problems:
        raise ReportedFailure(
            f"{len(problems)} file(s) of {bundle} are not what the manifest says:\n"
            + "\n".join(f"  {problem}" for problem in problems),
            hint="build the bundle again, or get it again from where it was built",
        )
    if not as_json:
        say(f"{bundle}: every file is what the manifest says")


def _read_with_bar(bundle: Path) -> list[Problem]:
    from rich.progress import DownloadColumn, Progress

    from tc_export.bundle import verify as verify_bundle

    console = Terminal(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        bar = progress.add_task("reading the bundle", total=None)
        return verify_bundle(
            bundle, lambda done, total: progress.update(bar, completed=done, total=total)
        )
