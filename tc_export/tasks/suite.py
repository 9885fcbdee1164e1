# SPDX-License-Identifier: Apache-2.0
"""Items: seeded, balanced over the answers, and split so that no combination is in two splits.

What an item shows and asks about is a combination, such as (red, circle, left, upper lane) for a
direction. Its hash decides its split, so a model is tested on combinations that it never saw in
training, although it saw each part of them.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tc_export.errors import UsageError
from tc_export.tasks import static, temporal
from tc_export.tasks.clips import Clip
from tc_export.tasks.kinds import Draft, Kind

GRADES = (1, 2, 3)

MAKERS: dict[Kind, Callable[[random.Random, int, str], Draft]] = {
    Kind.DIRECTION: temporal.direction,
    Kind.ORDER: temporal.order,
    Kind.FIRST_LAST: temporal.first_last,
    Kind.FLASHES: temporal.flashes,
    Kind.BEFORE_AFTER: temporal.before_after,
    Kind.SPEED: temporal.speed,
    Kind.STATE_CHANGE: temporal.state_change,
    Kind.PART: temporal.part,
    Kind.COLOUR: static.colour,
    Kind.SHAPE: static.shape,
    Kind.COUNT: static.count,
    Kind.POSITION: static.position,
}


class Split(StrEnum):
    """Which of the disjoint sets an item belongs to."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, kw_only=True)
class Item:
    """A clip, a question about it, and the one word that answers it.

    The same kind, grade, split and seed always make the same item.
    """

    kind: Kind
    grade: int
    split: Split
    seed: int
    question: str
    answer: str
    combination: tuple[str, ...]
    clip: Clip


def split_of(kind: Kind, combination: Sequence[str]) -> Split:
    """The split of a combination: 60 % train, 20 % validation, 20 % test, by hash."""
    name = "/".join((kind.value, *combination))
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) / 2**32
    if share < 0.6:
        return Split.TRAIN
    return Split.VALIDATION if share < 0.8 else Split.TEST


def make_item(kind: Kind, grade: int, split: Split, seed: int) -> Item:
    """Make one item. The seed's remainder chooses the answer, so a run of seeds is balanced."""
    if grade not in GRADES:
        raise UsageError(
            f"there is no grade {grade}", hint=f"grades: {', '.join(map(str, GRADES))}"
        )
    if seed < 0:
        raise UsageError(f"the seed is {seed}; it must not be negative")
    rng = random.Random(f"{kind.value}/{grade}/{split}/{seed}")
    answer = kind.answers[seed % len(kind.answers)]
    while True:
        draft = MAKERS[kind](rng, grade, answer)
        if split_of(kind, draft.combination) is split:
            return Item(
                kind=kind,
                grade=grade,
                split=split,
                seed=seed,
                question=draft.question,
                answer=answer,
                combination=draft.combination,
                clip=draft.clip,
            )


def make_items(
    split: Split,
    each: int,
    *,
    kinds: Iterable[Kind] = Kind,
    grades: Sequence[int] = GRADES,
    seed: int = 0,
) -> list[Item]:
    """Make `each` items of every kind and grade, with seeds that count up from `seed`."""
    return [
        make_item(kind, grade, split, seed + number)
        for kind in kinds
        for grade in grades
        for number in range(each)
    ]


def possible_answers() -> tuple[str, ...]:
    """Every word that answers an item, sorted."""
    return tuple(sorted({answer for kind in Kind for answer in kind.answers}))


def is_right(item: Item, answer: str) -> bool:
    """Whether the answer is exactly the item's word; case and white space around are ignored."""
    return answer.strip().casefold() == item.answer


def accuracy_by_kind(items: Sequence[Item], answers: Sequence[str]) -> dict[Kind, float]:
    """Share of right answers for each kind that occurs."""
    right: defaultdict[Kind, list[bool]] = defaultdict(list)
    for item, answer in zip(items, answers, strict=True):
        right[item.kind].append(is_right(item, answer))
    return {kind: sum(marks) / len(marks) for kind, marks in right.items()}


def best_guess_by_kind(items: Sequence[Item]) -> dict[Kind, float]:
    """For each kind, what one who sees no clip can reach: always giving the commonest answer."""
    answers: defaultdict[Kind, Counter[str]] = defaultdict(Counter)
    for item in items:
        answers[item.kind][item.answer] += 1
    return {kind: max(count.values()) / count.total() for kind, count in answers.items()}
