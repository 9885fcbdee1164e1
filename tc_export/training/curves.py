# SPDX-License-Identifier: Apache-2.0
"""Draws a run's curves as a small picture: training loss, and validation accuracy by kind."""

from __future__ import annotations

import colorsys
import io
import itertools
from collections.abc import Sequence

from PIL import Image, ImageDraw

from tc_export.tasks import Kind
from tc_export.training.state import Curves

Point = tuple[float, float]

WIDTH, HEIGHT = 820, 300
LOSS_BOX = (50, 30, 300, 265)  # left, top, right, bottom in pixels
ACCURACY_BOX = (360, 30, 660, 265)
LEGEND_LEFT, LEGEND_STEP = 680, 19
INK, PAPER, RULE = (40, 40, 40), (255, 255, 255), (215, 215, 215)
RULES = 4  # horizontal lines, and labels, between bottom and top


def draw_curves(curves: Curves, steps: int) -> bytes:
    """The picture as PNG."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    top = max((loss for _, loss in curves.loss), default=1.0)
    _axes(draw, LOSS_BOX, "training loss", steps, top)
    _line(draw, LOSS_BOX, curves.loss, steps, top, INK)
    _axes(draw, ACCURACY_BOX, "validation accuracy (dashed: static kinds)", steps, 1.0)
    for number, kind in enumerate(Kind):
        colour = _colour(number / len(Kind))
        points = [(step, by_kind[kind.value]) for step, by_kind in curves.validation]
        _line(draw, ACCURACY_BOX, points, steps, 1.0, colour, dashed=not kind.needs_time)
        y = LOSS_BOX[1] + number * LEGEND_STEP
        draw.line((LEGEND_LEFT, y + 6, LEGEND_LEFT + 18, y + 6), fill=colour, width=3)
        draw.text((LEGEND_LEFT + 25, y), kind.value, fill=INK)
    out = io.BytesIO()
    image.quantize(64).save(out, "PNG", optimize=True)
    return out.getvalue()


def _axes(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], title: str, steps: int, top: float
) -> None:
    left, upper, right, lower = box
    draw.text((left, upper - 20), title, fill=INK)
    for rule in range(RULES + 1):
        y = lower - (lower - upper) * rule / RULES
        draw.line((left, y, right, y), fill=RULE)
        draw.text((left - 32, y - 6), f"{top * rule / RULES:.2f}", fill=INK)
    draw.text((left, lower + 8), "0", fill=INK)
    draw.text((right - 30, lower + 8), f"{steps}", fill=INK)


def _line(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    points: Sequence[Point],
    steps: int,
    top: float,
    colour: tuple[int, int, int],
    *,
    dashed: bool = False,
) -> None:
    left, upper, right, lower = box
    pixels = [
        (left + (right - left) * x / steps, lower - (lower - upper) * y / top) for x, y in points
    ]
    for number, (begin, end) in enumerate(itertools.pairwise(pixels)):
        if not (dashed and number % 2):
            draw.line((*begin, *end), fill=colour, width=2)


def _colour(hue: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 0.75)
    return int(255 * red), int(255 * green), int(255 * blue)
