# SPDX-License-Identifier: Apache-2.0
"""Draws a run's curves: training loss, and validation accuracy by kind."""

from __future__ import annotations

import io

from matplotlib import colormaps
from matplotlib.figure import Figure

from tc_export.demo_model.state import Curves
from tc_export.tasks import Kind

SIZE_INCHES = (10.0, 3.6)
DPI = 90


def draw_curves(curves: Curves, steps: int) -> bytes:
    """The picture as PNG."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(*_columns(curves.loss), color="black")
    loss.set(title="training loss", xlabel="step", xlim=(0, steps), ylim=(0, None))
    colours = colormaps["turbo"]
    for number, kind in enumerate(Kind):
        points = [(step, 100 * by_kind[kind.value]) for step, by_kind in curves.validation]
        accuracy.plot(
            *_columns(points),
            label=kind.value.replace("_", " "),
            color=colours(number / len(Kind)),
            linestyle="solid" if kind.needs_time else "dashed",
        )
    accuracy.set(
        title="validation accuracy in % (dashed: static kinds)",
        xlabel="step",
        xlim=(0, steps),
        ylim=(0, 102),
    )
    accuracy.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI)
    return out.getvalue()


def _columns(points: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
