# SPDX-License-Identifier: Apache-2.0
"""Building blocks of clips: where figures are, when they are seen, and how they move.

A track is one figure over time: an entry for each step, None where it is not seen.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from tc_export.tasks.clips import COLOURS, SHAPES, STEPS, Clip, Colour, Figure, Shape

Track = list[Figure | None]
Place = tuple[float, float]

NEAR, FAR = 0.27, 0.73  # centres of the two lanes, and of the quadrants
JITTER = 0.04
RADII = (0.17, 0.21)  # two figures in neighbouring lanes never overlap
WAY = (0.2, 0.8)  # where the centre of a moving figure may be along its way


def clip_of(rng: random.Random, grade: int, *tracks: Track) -> Clip:
    """Put tracks together, the last in front. The background is textured in grade 3."""
    return Clip(
        frames=tuple(tuple(f for f in step if f) for step in zip(*tracks, strict=True)),
        background=rng.uniform(0.05, 0.2),
        texture=0.06 if grade == 3 else 0.0,
        texture_seed=rng.getrandbits(32),
    )


def figure(rng: random.Random, shape: Shape, colour: Colour, place: Place) -> Figure:
    """A figure of random size at about `place`."""
    x, y = (coordinate + rng.uniform(-JITTER, JITTER) for coordinate in place)
    return Figure(shape, colour, x, y, rng.uniform(*RADII))


def quadrants(rng: random.Random) -> list[Place]:
    """The centres of the four quadrants, in random order."""
    places = [(x, y) for x in (NEAR, FAR) for y in (NEAR, FAR)]
    rng.shuffle(places)
    return places


def place_name(*coordinates: float) -> str:
    """A place, or a lane, as a word of a combination."""
    return " ".join(f"{coordinate:.2f}" for coordinate in coordinates)


def other(rng: random.Random, colour: Colour) -> Colour:
    """Another colour than `colour`."""
    return rng.choice([candidate for candidate in COLOURS if candidate is not colour])


def other_shape(rng: random.Random, shape: Shape) -> Shape:
    """Another shape than `shape`."""
    return rng.choice([candidate for candidate in SHAPES if candidate is not shape])


def still(seen: Figure) -> Track:
    """A figure that is there all the time and does not move."""
    return [seen] * STEPS


def scenery(rng: random.Random, place: Place) -> Track:
    """A grey figure that stays."""
    return still(figure(rng, rng.choice(SHAPES), Colour.GREY, place))


def shown(seen: Figure, steps: Sequence[int]) -> Track:
    """A figure that is seen at these steps only."""
    return [seen if step in steps else None for step in range(STEPS)]


def one_after_another(events: Sequence[Figure], spans: Sequence[range]) -> Track:
    """Figures of which each is seen during its span."""
    track: Track = [None] * STEPS
    for seen, span in zip(events, spans, strict=True):
        for step in span:
            track[step] = seen
    return track


def moving(
    rng: random.Random, shape: Shape, colour: Colour, direction: str, lane: float, travel: float
) -> Track:
    """A figure that moves evenly by `travel` in the lane, which is a row or a column."""
    begin = rng.uniform(WAY[0], WAY[1] - travel)
    way = [begin + travel * step / (STEPS - 1) for step in range(STEPS)]
    if direction in ("left", "up"):
        way.reverse()
    return _in_lane(rng, shape, colour, lane, way, row=direction in ("left", "right"))


def swinging(
    rng: random.Random, shape: Shape, colour: Colour, lane: float, travel: float, *, row: bool
) -> Track:
    """A figure that goes to and fro on its way, by `travel` in all.

    At every step all places are equally likely, so where a figure is says nothing of its speed.
    """
    length = WAY[1] - WAY[0]
    phase = rng.uniform(0, 2 * length)
    way = []
    for step in range(STEPS):
        along = (phase + travel * step / (STEPS - 1)) % (2 * length)
        way.append(WAY[0] + min(along, 2 * length - along))
    return _in_lane(rng, shape, colour, lane, way, row=row)


def _in_lane(
    rng: random.Random, shape: Shape, colour: Colour, lane: float, way: list[float], *, row: bool
) -> Track:
    across = lane + rng.uniform(-JITTER, JITTER)
    radius = rng.uniform(*RADII)
    if row:
        return [Figure(shape, colour, along, across, radius) for along in way]
    return [Figure(shape, colour, across, along, radius) for along in way]


def spread(rng: random.Random, lengths: Sequence[int], least_gap: int = 0) -> list[range]:
    """Place spans of these lengths in the clip, in order, at least `least_gap` steps apart."""
    spare = STEPS - sum(lengths) - least_gap * (len(lengths) - 1)
    # Each spare step goes before one of the spans, or after the last.
    shifts = sorted(rng.randint(0, spare) for _ in lengths)
    spans: list[range] = []
    used = 0
    for length, shift in zip(lengths, shifts, strict=True):
        spans.append(range(used + shift, used + shift + length))
        used += length + least_gap
    return spans


def parts(rng: random.Random, total: int, count: int) -> list[int]:
    """Cut `total` into `count` random parts of at least one."""
    cuts = [0, *sorted(rng.sample(range(1, total), count - 1)), total]
    return [end - begin for begin, end in itertools.pairwise(cuts)]
