# SPDX-License-Identifier: Apache-2.0
"""Trains the small demonstration model and writes it as a checkpoint.

    python scripts/train_demo.py --output checkpoints/tc-llava-tiny --run-folder /var/tmp/run

A run that was interrupted goes on with --resume; with more --steps than before it is prolonged, and
then dwells on what was still confused (`TrainingConfig.late_from`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tc_export.demo_model.config import TrainingConfig
from tc_export.demo_model.demo import train_demo
from tc_export.errors import TcExportError

DEFAULTS = TrainingConfig()


def main(
    output: Annotated[Path, typer.Option(help="Where the checkpoint goes.")],
    run_folder: Annotated[Path, typer.Option(help="Where the run's state is kept.")],
    steps: Annotated[int, typer.Option(help="Steps in all.", min=1)] = DEFAULTS.steps,
    seed: Annotated[int, typer.Option(help="Of weights and data.", min=0)] = DEFAULTS.seed,
    threads: Annotated[int, typer.Option(help="CPU threads.", min=1)] = DEFAULTS.threads,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a saved run.")] = False,
) -> None:
    config = TrainingConfig(steps=steps, seed=seed, threads=threads)
    command = f"python scripts/train_demo.py --output {output} --run-folder RUN"
    try:
        train_demo(config, output=output, run_folder=run_folder, resume=resume, command=command)
    except TcExportError as error:
        typer.echo(f"error: {error}", err=True)
        if error.hint:
            typer.echo(f"hint: {error.hint}", err=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    typer.run(main)
