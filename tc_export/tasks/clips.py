# SPDX-License-Identifier: Apache-2.0
"""What a clip shows, as data: for each of its steps, the figures that are visible.

Lengths and positions are shares of the clip's side, so that one clip can be drawn at any size.
(0, 0) is the upper left corner, y grows downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

STEPS = 8
"""Steps of a clip: one frame each for a model, several equal frames each in a video file."""


class Shape(StrEnum):
    """What a figure looks like."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    CROSS = "cross"


class Colour(StrEnum):
    """What a figure is filled with. Grey figures are scenery: no question is about them."""

    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    PURPLE = "purple"
    WHITE = "white"
    GREY = "grey"


SHAPES: tuple[Shape, ...] = tuple(Shape)
COLOURS: tuple[Colour, ...] = tuple(colour for colour in Colour if colour is not Colour.GREY)


class Figure(NamedTuple):
    """One figure in one step: centre (x, y) and half of its height."""

    shape: Shape
    colour: Colour
    x: float
    y: float
    radius: float


Frame = tuple[Figure, ...]
"""The figures of one step, from back to front."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames over a background of grey cells.

    `background` is the mean grey level and `texture` the largest deviation from it, both as
    shares of white; the cells' levels follow from `texture_seed` and stay for the whole clip.
    """

    frames: tuple[Frame, ...]
    background: float
    texture: float
    texture_seed: int
