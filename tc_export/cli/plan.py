# SPDX-License-Identifier: Apache-2.0
"""`tc-export plan`: whether a model fits a device, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tc_export.cli.options import JsonOption, MaxLengthOption, PrecisionOption, TargetOption
from tc_export.cli.terminal import print_json, show

app = typer.Typer()


@app.command(
    epilog="Example: tc-export plan --checkpoint llava-1.5-7b-hf --target orin --frames 16"
)
def plan(
    checkpoint: Annotated[
        Path, typer.Option(help="Hugging Face folder, or its config.json alone.")
    ],
    target: TargetOption = "cpu",
    precision: PrecisionOption = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames of a question.")] = 16,
    max_length: MaxLengthOption = None,
    question_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a question, its template included.")
    ] = 64,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
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
    from tc_export.plan.report import plan_as_json, plan_as_tables
    from tc_export.targets import load_target, read_precisions

    device = load_target(target)
    precisions = read_precisions(precision, device)
    folder = checkpoint.parent if checkpoint.name == "config.json" else checkpoint
    made = make_plan(
        read_config(folder).model,
        device,
        precisions,
        frames,
        max_length,
        text_tokens=question_tokens + answer_tokens,
    )
    if chart is not None:
        from tc_export.plan.chart import draw_chart

        draw_chart(made, chart)
    if as_json:
        print_json(plan_as_json(made))
    else:
        show(plan_as_tables(made))
