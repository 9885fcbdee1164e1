# SPDX-License-Identifier: Apache-2.0
"""A chart of a plan: memory by part over the number of frames, with the device's limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tc_export.errors import UsageError
from tc_export.plan.memory import memory_by_part
from tc_export.plan.planner import Plan, profile_length

_POINTS = 64


def draw_chart(plan: Plan, path: Path) -> None:
    """Write the chart to `path`, as PNG.

    Raises:
        UsageError: the file cannot be written.
    """
    frames = _frame_counts(plan)
    parts = [_memory_at(plan, count) for count in frames]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    names = list(plan.bytes_by_part)
    unit = 1e9 if plan.limit_bytes >= 1e9 else 1e6
    sizes = [[part[name] / unit for part in parts] for name in names]
    axes.stackplot(frames, sizes, labels=[name.replace("_", " ") for name in names])
    axes.axhline(plan.limit_bytes / unit, color="black", label="memory of the device")
    axes.axvline(plan.workload.frames, color="black", linestyle=":", label="frames asked for")
    axes.set(
        title=f"{plan.target.description}: memory while answering (predicted)",
        xlabel="frames",
        ylabel="GB" if unit == 1e9 else "MB",
        xlim=(frames[0], max(frames[-1], frames[0] + 1)),
    )
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5))
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise UsageError(f"the chart cannot be written to {path}: {error}") from error


def _frame_counts(plan: Plan) -> list[int]:
    """Counts from one to past the limit, within what the context has room for."""
    room = plan.max_length or plan.config.text.max_position_embeddings
    possible = (room - 1) // plan.config.tokens_per_frame
    last = min(possible, 2 * max(plan.max_frames, plan.workload.frames, 1))
    return sorted({round(count) for count in np.linspace(1, last, min(_POINTS, last))})


def _memory_at(plan: Plan, frames: int) -> dict[str, int]:
    length = profile_length(plan.config, frames, plan.max_length)
    workload = replace(plan.workload, frames=frames, length=length)
    return memory_by_part(plan.config, plan.target, workload)
