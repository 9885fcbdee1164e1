# SPDX-License-Identifier: Apache-2.0
"""Controls that need no time: nothing moves, and any one frame answers them.

In grade 1 there is nothing but what is asked about; grade 2 adds a second figure; grade 3 adds
scenery and a textured background.
"""

from __future__ import annotations

import random

from tc_export.tasks.clips import COLOURS, SHAPES, Colour, Shape
from tc_export.tasks.kinds import NUMBERS, PLACES, Draft
from tc_export.tasks.scenes import (
    FAR,
    NEAR,
    Place,
    Track,
    clip_of,
    figure,
    other,
    other_shape,
    place_name,
    quadrants,
    scenery,
    still,
)


def _with_others(
    rng: random.Random, grade: int, shape: Shape, colour: Colour, places: list[Place]
) -> list[Track]:
    """The figure at the first place; at the others what its grade adds."""
    tracks = [still(figure(rng, shape, colour, places[0]))]
    if grade > 1:
        second = figure(rng, other_shape(rng, shape), other(rng, colour), places[1])
        tracks.append(still(second))
    if grade > 2:
        tracks.append(scenery(rng, places[2]))
    return tracks


def colour(rng: random.Random, grade: int, answer: str) -> Draft:
    """Which colour a shape has."""
    shape, places = rng.choice(SHAPES), quadrants(rng)
    tracks = _with_others(rng, grade, shape, Colour(answer), places)
    question = rng.choice((f"What colour is the {shape}?", f"Which colour has the {shape}?"))
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(answer, shape, place_name(*places[0])),
    )


def shape(rng: random.Random, grade: int, answer: str) -> Draft:
    """Which shape the thing of a colour has."""
    tint, places = rng.choice(COLOURS), quadrants(rng)
    tracks = _with_others(rng, grade, Shape(answer), tint, places)
    question = rng.choice((f"What shape is the {tint} thing?", f"Which shape is {tint}?"))
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(tint, answer, place_name(*places[0])),
    )


def count(rng: random.Random, grade: int, answer: str) -> Draft:
    """How many figures there are: equal ones in grade 1, of several colours from grade 2 on."""
    form, tint, places = rng.choice(SHAPES), rng.choice(COLOURS), quadrants(rng)
    tracks = [
        still(figure(rng, form, tint if grade == 1 else rng.choice(COLOURS), place))
        for place in places[: NUMBERS.index(answer) + 1]
    ]
    question = rng.choice((f"How many {form} shapes are there?", f"Count the {form} shapes."))
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(tint, form, answer, place_name(*places[0])),
    )


def position(rng: random.Random, grade: int, answer: str) -> Draft:
    """At which side of the picture a figure is; from grade 2 on another is opposite."""
    form, tint = rng.choice(SHAPES), rng.choice(COLOURS)
    along = rng.choice((0.4, 0.6))
    sides = ((NEAR, along), (FAR, along), (along, NEAR), (along, FAR))
    x, y = sides[PLACES.index(answer)]
    tracks = _with_others(rng, min(grade, 2), form, tint, [(x, y), (1 - x, 1 - y)])
    question = rng.choice((f"Where is the {tint} {form}?", f"At which side is the {tint} {form}?"))
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(tint, form, answer, place_name(along)),
    )
