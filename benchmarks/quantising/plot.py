# SPDX-License-Identifier: Apache-2.0
"""Draws what recipes cost over what they save: answers, and text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from tc_export.parity.answers.statistics import difference_interval

Row = Mapping[str, Any]

MARKERS = "osD^vP*X<>ph8d"
STEP = 0.6  # per cent: between recipes of the same size, which would hide each other
LABEL = "bytes of the decoder's layers, % of float32"


def draw(rows: Sequence[Row], path: Path) -> None:
    """One picture: answers over the demonstration model's bytes, KL over those of SmolLM2."""
    mpl.use("Agg")
    figure, (answers, text) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    before = next(row for row in rows if row["recipe"] == "none")
    quantised = [row for row in rows if row is not before]
    draw_answers(answers, before, quantised)
    draw_text(text, before, quantised)
    for axes in (answers, text):
        axes.set_xlabel(LABEL)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    figure.legend(
        *text.get_legend_handles_labels(),
        title="full: recipes; hollow: peers",
        loc="outside right upper",
        fontsize="small",
    )
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def draw_answers(axes: Axes, before: Row, rows: Sequence[Row]) -> None:
    """What accuracy became, in points, with 95 % intervals."""
    for row, style, x in placed(rows, before, "accuracy_bytes"):
        lost, won, items = row["lost"], row["won"], row["accuracy_items"]
        points = 100 * (won - lost) / items
        low, high = (100 * end for end in difference_interval(lost, won, items))
        reach = [[points - low], [high - points]]
        axes.errorbar(x, points, yerr=reach, capsize=2, linewidth=1, **style)
    axes.axhline(0, color="grey", linewidth=1, linestyle=":")
    axes.set_title(
        f"answers: demonstration model, float32 {100 * before['accuracy']:.1f} % right of "
        f"{before['accuracy_items']}",
        fontsize="medium",
    )
    axes.set_ylabel("points of accuracy, less float32's")


def draw_text(axes: Axes, before: Row, rows: Sequence[Row]) -> None:
    """KL from float32, on a logarithmic scale."""
    for row, style, x in placed(rows, before, "bytes"):
        axes.plot(x, row["kl"], **style)
    axes.set_yscale("log")
    axes.set_title("text: SmolLM2-135M", fontsize="medium")
    axes.set_ylabel("KL from float32, nats a token")


def placed(
    rows: Sequence[Row], before: Row, key: str
) -> Iterator[tuple[Row, dict[str, Any], float]]:
    """Each row, its marker, and its place: bytes as a share; those of one size side by side."""
    last = -STEP
    order = sorted(range(len(rows)), key=lambda number: (rows[number][key], number))
    for number in order:
        row = rows[number]
        last = max(100 * row[key] / before[key], last + STEP)
        colour = mpl.colormaps["tab10"](number % 10)
        style = {
            "label": row["recipe"],
            "color": colour,
            "marker": MARKERS[number % len(MARKERS)],
            "markerfacecolor": "none" if row["peer"] else colour,
            "linestyle": "none",
        }
        yield row, style, last
