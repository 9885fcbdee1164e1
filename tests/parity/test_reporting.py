# SPDX-License-Identifier: Apache-2.0
"""What reports share: answers that turned, and numbers that JSON cannot write."""

from __future__ import annotations

import json
from math import inf, nan

import pytest

from tc_export.parity.reporting import Flip, flip_table, spell_infinite
from tc_export.tasks import Item, Kind, Split, make_item


def test_what_is_not_finite_becomes_a_string_at_any_depth() -> None:
    document = {"a": nan, "b": [1.5, -inf], "c": {"d": (inf, 2, "inf", None, True)}}
    spelled = spell_infinite(document)
    assert spelled == {"a": "nan", "b": [1.5, "-inf"], "c": {"d": ["inf", 2, "inf", None, True]}}
    assert json.loads(json.dumps(spelled, allow_nan=False)) == spelled


@pytest.mark.parametrize(("count", "shown", "more"), [(3, 3, None), (12, 10, "and 2 more")])
def test_the_first_answers_that_turned_are_shown(count: int, shown: int, more: str | None) -> None:
    items: list[Item] = [make_item(Kind.ORDER, 2, Split.TEST, seed) for seed in range(count)]
    flips = [Flip(item, (f"a{item.seed}", f"b{item.seed}"), 0.125) for item in items]
    table = flip_table(flips, title="turned", sides=("before", "now"), margin="margin before")
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert list(cells) == ["kind", "question", "right", "before", "now", "margin before"]
    assert cells["before"] == [repr(f"a{seed}") for seed in range(shown)]
    assert cells["now"] == [repr(f"b{seed}") for seed in range(shown)]
    assert cells["right"] == [repr(item.answer) for item in items[:shown]]
    assert set(cells["kind"]) == {"order, 2"}
    assert set(cells["margin before"]) == {"0.125"}
    assert (table.caption is None) if more is None else more in str(table.caption)
