# SPDX-License-Identifier: Apache-2.0
"""Tasks that need time: one frame may make an answer likelier, but none gives it.

Each function draws a clip and a question for a given answer. In grade 1 there is nothing but what
is asked about; grade 2 adds scenery or uneven timing; grade 3 adds others that take part, and
a textured background.
"""

from __future__ import annotations

import random

from tc_export.tasks.clips import COLOURS, SHAPES, STEPS, Colour, Shape
from tc_export.tasks.kinds import DIRECTIONS, NUMBERS, ORDINALS, PARTS, Draft
from tc_export.tasks.scenes import (
    FAR,
    NEAR,
    Track,
    clip_of,
    figure,
    moving,
    one_after_another,
    other,
    other_shape,
    parts,
    place_name,
    quadrants,
    scenery,
    shown,
    spread,
    still,
    swinging,
)


def direction(rng: random.Random, grade: int, answer: str) -> Draft:
    """Which way a figure moves; in grade 3 another one moves its own way."""
    shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
    lanes = [NEAR, FAR]
    rng.shuffle(lanes)
    tracks: list[Track] = []
    if grade > 1:
        horizontal = answer in ("left", "right")
        place = (rng.choice((NEAR, FAR)), lanes[1]) if horizontal else (lanes[1], NEAR)
        if grade == 2:
            tracks.append(scenery(rng, place))
        else:
            way = rng.choice(DIRECTIONS[:2] if horizontal else DIRECTIONS[2:])
            tracks.append(
                moving(
                    rng,
                    other_shape(rng, shape),
                    other(rng, colour),
                    way,
                    lanes[1],
                    rng.uniform(0.35, 0.55),
                )
            )
    tracks.append(moving(rng, shape, colour, answer, lanes[0], rng.uniform(0.35, 0.55)))
    question = rng.choice(
        (
            f"Which way does the {colour} {shape} move?",
            f"In which direction does the {colour} {shape} go?",
        )
    )
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(colour, shape, answer, place_name(lanes[0])),
    )


def _colour_events(
    rng: random.Random, grade: int, shape: Shape, colours: list[Colour]
) -> list[Track]:
    """Show a shape in each colour in turn; from grade 2 on at changing places."""
    places = quadrants(rng)
    events = [
        figure(rng, shape, colour, places[1] if grade == 1 else rng.choice(places[1:]))
        for colour in colours
    ]
    lengths = [2 if grade == 1 else rng.randint(1, 2) for _ in colours]
    track = one_after_another(events, spread(rng, lengths))
    return [track] if grade < 3 else [scenery(rng, places[0]), track]


def _colours_with(rng: random.Random, count: int, index: int, answer: str) -> list[Colour]:
    """Different colours, of which the one at `index` is the answer."""
    colours: list[Colour] = rng.sample([c for c in COLOURS if c != answer], count - 1)
    colours.insert(index, Colour(answer))
    return colours


def order(rng: random.Random, grade: int, answer: str) -> Draft:
    """Which of three colours is the first, second or third."""
    shape, index = rng.choice(SHAPES), rng.randrange(3)
    colours = _colours_with(rng, 3, index, answer)
    ordinal = ORDINALS[index]
    question = rng.choice((f"What is the {ordinal} colour?", f"Which colour appears {ordinal}?"))
    return Draft(
        clip=clip_of(rng, grade, *_colour_events(rng, grade, shape, colours)),
        question=question,
        combination=(*colours, shape),
    )


def before_after(rng: random.Random, grade: int, answer: str) -> Draft:
    """Which colour comes right before or after a given one; four colours in grade 3."""
    count = 4 if grade == 3 else 3
    shape, index, step = rng.choice(SHAPES), rng.randrange(count), rng.choice((-1, 1))
    if not 0 <= index + step < count:
        step = -step
    colours = _colours_with(rng, count, index, answer)
    given = colours[index + step]
    relation = "after" if step < 0 else "before"
    question = rng.choice(
        (
            f"What colour comes right {relation} {given}?",
            f"Which colour is seen just {relation} {given}?",
        )
    )
    return Draft(
        clip=clip_of(rng, grade, *_colour_events(rng, grade, shape, colours)),
        question=question,
        combination=(*colours, shape),
    )


def first_last(rng: random.Random, grade: int, answer: str) -> Draft:
    """Which of three shapes appears first or last."""
    index, word = rng.choice(((0, "first"), (2, "last")))
    shapes = rng.sample([shape for shape in SHAPES if shape != answer], 2)
    shapes.insert(index, Shape(answer))
    places = quadrants(rng)
    colours = rng.sample(COLOURS, 3)
    events = [
        figure(rng, shape, colour, places[1] if grade == 1 else rng.choice(places[1:]))
        for shape, colour in zip(shapes, colours, strict=True)
    ]
    lengths = [2 if grade == 1 else rng.randint(1, 2) for _ in shapes]
    track = one_after_another(events, spread(rng, lengths))
    tracks = [track] if grade < 3 else [scenery(rng, places[0]), track]
    question = rng.choice((f"Which shape appears {word}?", f"What is the {word} shape?"))
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(*shapes, *colours),
    )


def flashes(rng: random.Random, grade: int, answer: str) -> Draft:
    """How many times a figure is seen. How long it is seen in all says nothing about that."""
    shape, colour, places = rng.choice(SHAPES), rng.choice(COLOURS), quadrants(rng)
    lengths = parts(rng, rng.randint(3, 5), NUMBERS.index(answer) + 1)
    steps = [step for span in spread(rng, lengths, least_gap=1) for step in span]
    tracks = [shown(figure(rng, shape, colour, places[0]), steps)]
    if grade > 1:
        tracks.insert(0, scenery(rng, places[1]))
    if grade == 3:
        bystander = figure(rng, other_shape(rng, shape), other(rng, colour), places[2])
        tracks.insert(0, still(bystander))
    question = rng.choice(
        (
            f"How many times does the {colour} {shape} flash?",
            f"How often is the {colour} {shape} shown?",
        )
    )
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(colour, shape, answer, place_name(*places[0])),
    )


def speed(rng: random.Random, grade: int, answer: str) -> Draft:
    """Which of two figures in neighbouring lanes moves faster."""
    fast, slow = Colour(answer), other(rng, Colour(answer))
    shape, row = rng.choice(SHAPES), rng.random() < 0.5
    travel = rng.uniform(0.9, 1.2)
    ratio = {1: 4.0, 2: 3.0, 3: 2.5}[grade]
    lanes = [NEAR, FAR]
    rng.shuffle(lanes)
    tracks = [
        swinging(rng, shape, fast, lanes[0], travel, row=row),
        swinging(rng, shape, slow, lanes[1], travel / ratio, row=row),
    ]
    question = rng.choice(
        (f"What colour is the faster {shape}?", f"Which colour does the faster {shape} have?")
    )
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(fast, slow, shape, "row" if row else "column", place_name(lanes[0])),
    )


def state_change(rng: random.Random, grade: int, answer: str) -> Draft:
    """Which colour a figure that changes once has at first, or takes on."""
    shape, places = rng.choice(SHAPES), quadrants(rng)
    colours = [other(rng, Colour(answer)), Colour(answer)]
    asks_first = rng.random() < 0.5
    if asks_first:
        colours.reverse()
    change = rng.randint(2, STEPS - 2)
    before = figure(rng, shape, colours[0], places[0])
    after = before._replace(colour=colours[1])
    tracks = [one_after_another((before, after), (range(change), range(change, STEPS)))]
    if grade > 1:
        tracks.insert(0, scenery(rng, places[1]))
    if grade == 3:
        colour = rng.choice([c for c in COLOURS if c not in colours])
        tracks.insert(0, still(figure(rng, other_shape(rng, shape), colour, places[2])))
    question = rng.choice(
        (f"What colour is the {shape} at first?", f"Which colour does the {shape} lose?")
        if asks_first
        else (f"What colour does the {shape} become?", f"Which colour does the {shape} turn to?")
    )
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(*colours, shape, place_name(*places[0])),
    )


def part(rng: random.Random, grade: int, answer: str) -> Draft:
    """In which third of the clip a figure is seen; in grade 3 another is seen in another third."""
    shape, colour, places = rng.choice(SHAPES), rng.choice(COLOURS), quadrants(rng)

    def seen_in(name: str) -> range:
        begin = {"beginning": 0, "middle": 3, "end": 6}[name]
        length = rng.randint(1, 2)
        begin += rng.randint(0, 2 - length)
        return range(begin, begin + length)

    tracks = [shown(figure(rng, shape, colour, places[0]), seen_in(answer))]
    if grade == 2:
        tracks.insert(0, scenery(rng, places[1]))
    if grade == 3:
        elsewhere = rng.choice([name for name in PARTS if name != answer])
        bystander = figure(rng, other_shape(rng, shape), other(rng, colour), places[1])
        tracks.insert(0, shown(bystander, seen_in(elsewhere)))
    question = rng.choice(
        (
            f"In which part is the {colour} {shape} seen?",
            f"When does the {colour} {shape} appear?",
        )
    )
    return Draft(
        clip=clip_of(rng, grade, *tracks),
        question=question,
        combination=(colour, shape, answer, place_name(*places[0])),
    )
