# SPDX-License-Identifier: Apache-2.0
"""Errors by layer and place, drawn: an inline SVG.

Each cell has one of seven classes of the error as a share of its tolerance. Within the tolerance a
cell is the darker the nearer it comes; outside it has another hue and a mark, so that print without
colours, and eyes that do not tell some apart, see it as well. Colours are the page's: light, dark
and print each have their own (`page.html.jinja`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isinf
from xml.etree import ElementTree

from tc_export.parity.reporting import spell_share

Grid = Sequence[Sequence[float | None]]

CELL, GAP, LETTER = 18, 2, 6.2
LABEL_WIDTH, LABEL_HEIGHT, OVERHANG = 64, 76, 36  # the last column's label leans out to the right


@dataclass(frozen=True)
class Class:
    """Shares up to `limit`, and how they are shown."""

    name: str
    limit: float
    words: str
    mark: str = ""


CLASSES = (
    Class("a", 0.1, "up to a tenth of the tolerance"),
    Class("b", 0.3, "up to 0.3"),
    Class("c", 0.6, "up to 0.6"),
    Class("d", 1.0, "up to the tolerance"),
    Class("e", 3.0, "up to 3 times the tolerance", "+"),
    Class("f", 10.0, "up to 10 times", "X"),
    Class("g", float("inf"), "more, or not finite", "■"),
)


def class_of(share: float) -> Class:
    """The class of a share; what is no number is in the last."""
    return next((x for x in CLASSES if share <= x.limit), CLASSES[-1])


def heat_map(title: str, rows: Sequence[str], columns: Sequence[str], shares: Grid) -> str:
    """Draw `shares` [row][column]; None leaves a cell out.

    Returns:
        An SVG element with a text for each cell, which browsers show and screen readers read.
    """
    width = LABEL_WIDTH + len(columns) * (CELL + GAP) + OVERHANG
    height = LABEL_HEIGHT + len(rows) * (CELL + GAP)
    svg = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
            "class": "heat-map",
        },
    )
    ElementTree.SubElement(svg, "title").text = title
    for index, column in enumerate(columns):
        x = LABEL_WIDTH + index * (CELL + GAP) + CELL / 2 + 4
        turn = {"transform": f"translate({x:g} {LABEL_HEIGHT - 6}) rotate(-60)"}
        _text(svg, _short(column, LABEL_HEIGHT), column, turn)
    for index, row in enumerate(rows):
        y = LABEL_HEIGHT + index * (CELL + GAP)
        place = {"x": str(LABEL_WIDTH - 6), "y": f"{y + 13}", "text-anchor": "end"}
        _text(svg, _short(row, LABEL_WIDTH), row, place)
        for column_index, share in enumerate(shares[index]):
            if share is not None:
                x = LABEL_WIDTH + column_index * (CELL + GAP)
                _cell(svg, x, y, f"{row}, {columns[column_index]}", share)
    return ElementTree.tostring(svg, encoding="unicode")


def _cell(svg: ElementTree.Element, x: int, y: int, where: str, share: float) -> None:
    found = class_of(share)
    group = ElementTree.SubElement(svg, "g", {"class": f"share-{found.name}"})
    ElementTree.SubElement(group, "title").text = f"{where}: {spell_share(share)}"
    size = {"width": str(CELL), "height": str(CELL)}
    ElementTree.SubElement(group, "rect", {"x": str(x), "y": str(y), "rx": "2", **size})
    if found.mark:
        place = {"x": f"{x + CELL / 2:g}", "y": f"{y + 13}", "text-anchor": "middle"}
        ElementTree.SubElement(group, "text", place).text = found.mark


def _text(svg: ElementTree.Element, shown: str, whole: str, attributes: dict[str, str]) -> None:
    element = ElementTree.SubElement(svg, "text", {"class": "label", **attributes})
    element.text = shown
    if shown != whole:
        ElementTree.SubElement(element, "title").text = whole


def _short(text: str, room: int) -> str:
    letters = int(room / LETTER)
    return text if len(text) <= letters else f"{text[: letters - 1]}…"


def is_outside(share: float | None) -> bool:
    """True where a share is above its tolerance, or no finite number."""
    return share is not None and (isinf(share) or not share <= 1)
