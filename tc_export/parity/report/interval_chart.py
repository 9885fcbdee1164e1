# SPDX-License-Identifier: Apache-2.0
"""Differences and their confidence intervals, drawn: an inline SVG, a row for each.

Lines and letters take the page's colours, which are others in the dark and in print
(`page.html.jinja`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

ROW, LABEL_WIDTH, PLOT_WIDTH, MARGIN, SCALE_HEIGHT = 22, 104, 420, 18, 26
STEPS = (0.5, 1, 2, 5, 10, 20, 50, 100)
MOST_STEPS = 8


@dataclass(frozen=True)
class Interval:
    """A difference from `low` to `high`, with its best guess, in the unit of the scale."""

    name: str
    value: float
    low: float
    high: float


def interval_chart(title: str, intervals: Sequence[Interval], mark: float) -> str:
    """Draw intervals over one scale, with lines at zero and at `mark`.

    Returns:
        An SVG element, which browsers show and screen readers read.
    """
    least = min(mark, *(x.low for x in intervals))
    most = max(0.0, *(x.high for x in intervals))
    step = next((x for x in STEPS if (most - least) / x <= MOST_STEPS), STEPS[-1])

    def place(value: float) -> float:
        return LABEL_WIDTH + MARGIN + (value - least) / (most - least or 1.0) * PLOT_WIDTH

    width = LABEL_WIDTH + PLOT_WIDTH + 2 * MARGIN
    bottom = ROW * len(intervals)
    svg = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {width} {bottom + SCALE_HEIGHT}",
            "width": str(width),
            "height": str(bottom + SCALE_HEIGHT),
            "role": "img",
            "class": "intervals",
        },
    )
    ElementTree.SubElement(svg, "title").text = title
    tick = step * -(-least // step)
    while tick <= most:
        _line(svg, "grid", place(tick), 0, place(tick), bottom)
        at = {"x": f"{place(tick):.1f}", "y": f"{bottom + 16}", "text-anchor": "middle"}
        ElementTree.SubElement(svg, "text", {"class": "label", **at}).text = (
            f"{tick:+g}" if tick else "0"
        )
        tick += step
    _line(svg, "zero", place(0), 0, place(0), bottom)
    _line(svg, "mark", place(mark), 0, place(mark), bottom)
    for number, x in enumerate(intervals):
        y = ROW * number + ROW / 2
        group = ElementTree.SubElement(svg, "g")
        words = f"{x.name}: {x.value:+.1f}, from {x.low:+.1f} to {x.high:+.1f}"
        ElementTree.SubElement(group, "title").text = words
        at = {"x": str(LABEL_WIDTH), "y": f"{y + 4:g}", "text-anchor": "end"}
        ElementTree.SubElement(group, "text", at).text = x.name
        _line(group, "interval", place(x.low), y, place(x.high), y)
        dot = {"cx": f"{place(x.value):.1f}", "cy": f"{y:g}", "r": "3.5"}
        ElementTree.SubElement(group, "circle", dot)
    return ElementTree.tostring(svg, encoding="unicode")


def _line(
    parent: ElementTree.Element, name: str, x1: float, y1: float, x2: float, y2: float
) -> None:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ElementTree.SubElement(parent, "line", {"class": name, **ends})
