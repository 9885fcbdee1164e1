# SPDX-License-Identifier: Apache-2.0
"""The kinds of task, the words that can answer each, and what a drawn task consists of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Self

from tc_export.tasks.clips import COLOURS, SHAPES, Clip

DIRECTIONS = ("left", "right", "up", "down")
ORDINALS = ("first", "second", "third")
PARTS = ("beginning", "middle", "end")
NUMBERS = ("one", "two", "three", "four")
PLACES = ("left", "right", "top", "bottom")


class Kind(Enum):
    """What a task asks for. `needs_time`: the order or number of frames decides the answer."""

    needs_time: bool
    answers: tuple[str, ...]

    DIRECTION = ("direction", True, DIRECTIONS)
    ORDER = ("order", True, COLOURS)
    FIRST_LAST = ("first_last", True, SHAPES)
    FLASHES = ("flashes", True, NUMBERS[:3])
    BEFORE_AFTER = ("before_after", True, COLOURS)
    SPEED = ("speed", True, COLOURS)
    STATE_CHANGE = ("state_change", True, COLOURS)
    PART = ("part", True, PARTS)
    COLOUR = ("colour", False, COLOURS)
    SHAPE = ("shape", False, SHAPES)
    COUNT = ("count", False, NUMBERS)
    POSITION = ("position", False, PLACES)

    def __new__(cls, value: str, needs_time: bool, answers: tuple[str, ...]) -> Self:
        """Make a member whose value is its name in reports."""
        member = object.__new__(cls)
        member._value_ = value
        member.needs_time = needs_time
        member.answers = tuple(map(str, answers))
        return member


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A clip with a question, for an answer that was given beforehand.

    `combination` names what must not be in two splits: the answer, the things asked about, and
    where they are. Were it only what the question says and the answer, then a question would give
    away which answers are not in the training set.
    """

    clip: Clip
    question: str
    combination: tuple[str, ...]
