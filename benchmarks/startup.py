# SPDX-License-Identifier: Apache-2.0
"""What a command costs before it does anything: help, a usage error, an unchanged build, an import.

Each figure is the processor time, user plus system, of a whole process and of those that it starts:
the median of several runs, so that neither waiting for the disk nor a busy machine counts.

    python benchmarks/startup.py [--json] [--runs 5]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "tc-llava-tiny"
TC_EXPORT = (sys.executable, "-m", "tc_export")
GOALS_S = {"help_s": 0.5, "usage_error_s": 0.5, "unchanged_rebuild_s": 2.0, "import_s": 0.1}
USAGE = 2


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each command.")] = 5,
) -> None:
    """Measure, and print a table or JSON."""
    with tempfile.TemporaryDirectory() as folder:
        build = ("build", "--checkpoint", str(CHECKPOINT), "--output", str(Path(folder) / "bundle"))
        rebuild = (*TC_EXPORT, *build, "--max-frames", "8")
        cpu_seconds(rebuild)  # the first run makes the bundle that the others find unchanged
        found = {
            "help_s": typical(runs, (*TC_EXPORT, "--help")),
            "usage_error_s": typical(runs, (*TC_EXPORT, *build, "--target", "nosuch"), USAGE),
            "unchanged_rebuild_s": typical(runs, rebuild),
            "import_s": typical(runs, (sys.executable, "-c", "import tc_export")),
        }
    if as_json:
        print(json.dumps(found))
        return
    table = Table("what", "seconds", "goal")
    for name, seconds in found.items():
        table.add_row(name.removesuffix("_s").replace("_", " "), f"{seconds}", f"{GOALS_S[name]}")
    Console().print(table)


def typical(runs: int, command: Sequence[str], exit_code: int = 0) -> float:
    """The median of several runs, in seconds."""
    return round(median(cpu_seconds(command, exit_code) for _ in range(runs)), 3)


def cpu_seconds(command: Sequence[str], exit_code: int = 0) -> float:
    """User and system time of a process and its children, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode != exit_code:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    typer.run(main)
