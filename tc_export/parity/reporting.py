# SPDX-License-Identifier: Apache-2.0
"""What reports share: the verdict, answers that turned, and numbers that JSON cannot write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from rich.table import Table
from rich.text import Text

from tc_export.tasks import Item

MOST_FLIPS_SHOWN = 10


@dataclass(frozen=True)
class Flip:
    """An item that two sides answer differently.

    `margin` is how far the first side's choice was above the next, in logits.
    """

    item: Item
    answers: tuple[str, str]
    margin: float


def flip_table(flips: Sequence[Flip], *, title: str, sides: tuple[str, str], margin: str) -> Table:
    """The first answers that turned; `sides` and `margin` are headings."""
    more = len(flips) - MOST_FLIPS_SHOWN
    table = Table(title=title, caption=f"and {more} more: see --json" if more > 0 else None)
    for heading in ("kind", "question", "right", *sides, margin):
        table.add_column(heading)
    for flip in flips[:MOST_FLIPS_SHOWN]:
        item = flip.item
        words = [repr(text) for text in (item.answer, *flip.answers)]
        kind = f"{item.kind.value}, {item.grade}"
        table.add_row(kind, item.question, *words, f"{flip.margin:.3g}")
    return table


def verdict(passed: bool) -> Text:
    """The word for people, in its colour."""
    return Text("passed", style="green") if passed else Text("FAILED", style="red")


def spell_infinite(value: Any) -> Any:
    """The value with every number in it that is not finite as a string: "inf", "-inf", "nan"."""
    if isinstance(value, Mapping):
        return {name: spell_infinite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [spell_infinite(part) for part in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def spell_share(share: float) -> str:
    """A share of the tolerance as a person reads it: `37 %`, `2.4 times`, `not finite`."""
    if not isfinite(share):
        return "not finite"
    if share < 1e-3:
        return "under 0.1 %"
    return f"{share:.2g} times" if share > 1 else f"{100 * share:.2g} %"
