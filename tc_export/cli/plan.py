# SPDX-License-Identifier: Apache-2.0
"""`tc-export plan`: whether a model fits a device, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tc_export.cli.options import (
    CheckpointOption,
    ConfigOption,
    FramesOption,
    JsonOption,
    KvOption,
    MaxLengthOption,
    MemoryOption,
    OneTargetOption,
    PartsOption,
    PoolingStrideOption,
    PrecisionOption,
    QuantizeOption,
    VisionFeaturesOption,
)
from tc_export.cli.terminal import print_json, show
from tc_export.errors import UsageError

if TYPE_CHECKING:
    from tc_export.cli.settings.choose import ChosenSettings
    from tc_export.plan.planner import Plan

app = typer.Typer()


@app.command(
    epilog="Example: tc-export plan --checkpoint llava-1.5-7b-hf --target orin --frames 16"
)
def plan(
    checkpoint: CheckpointOption = None,
    target: OneTargetOption = None,
    config: ConfigOption = None,
    precision: PrecisionOption = None,
    quantize: QuantizeOption = None,
    frames: FramesOption = None,
    max_length: MaxLengthOption = None,
    question_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a question, its template included.")
    ] = 64,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 128,
    pooling_stride: PoolingStrideOption = None,
    vision_features: VisionFeaturesOption = None,
    kv: KvOption = None,
    memory: MemoryOption = None,
    parts: PartsOption = None,
    chart: Annotated[
        Path | None, typer.Option(help="Draw memory over frames to this PNG.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict whether a model fits a device, how many frames do, and how fast it would be.

    The checkpoint may be its config.json alone. Nothing is built, and no weight is read. Exit code
    0 says that the plan was made, not that the model fits.
    """
    from tc_export.cli.settings.choose import choose_settings

    flags = {
        "checkpoint": checkpoint,
        "target": target,
        "precision": precision,
        "quantize": quantize,
        "profile.max_frames": frames,
        "profile.max_length": max_length,
        "pooling.stride": pooling_stride,
        "vision.features": vision_features,
        "cache.kv": kv,
        "build.memory": memory,
        "build.parts": parts,
    }
    chosen = choose_settings(flags, config)
    with chosen.named_in_errors():
        made = _make_plan(chosen, question_tokens + answer_tokens)
    if chart is not None:
        from tc_export.plan.chart import draw_chart

        draw_chart(made, chart)
    if as_json:
        from tc_export.plan.report import plan_as_json

        print_json(plan_as_json(made))
    else:
        from tc_export.plan.report import plan_as_tables

        show(plan_as_tables(made))


def _make_plan(chosen: ChosenSettings, text_tokens: int) -> Plan:
    from tc_export.checkpoint.hf_config import CONFIG, read_config
    from tc_export.plan.planner import make_plan
    from tc_export.recipes import choose_recipe, settings_with_recipe
    from tc_export.targets import load_target, read_precisions

    values = chosen.values
    if len(values.target) > 1:
        raise UsageError(
            f"a plan is for one target, and {chosen.file} names {', '.join(values.target)}",
            hint=f"name one of them: --target {values.target[0]}",
        )
    device = load_target(values.target[0])
    precisions = read_precisions(values.precision, device)
    place = chosen.checkpoint
    asked = settings_with_recipe(chosen.model, values.quantize)
    read = read_config(place.parent if place.name == CONFIG else place, asked)
    recipe = choose_recipe(values.quantize, read.recipe, device, values.release)
    profile, build = values.profile, values.build
    return make_plan(
        read.model,
        device,
        precisions,
        profile.max_frames,
        profile.max_length,
        text_tokens=text_tokens,
        parts=None if build.parts == "auto" else build.parts,
        memory_bytes=None if build.memory is None else round(build.memory * 1e9),
        recipe=recipe,
    )
