# SPDX-License-Identifier: Apache-2.0
"""Counting what became of answers, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import StringIO
from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tc_export.parity.answers.asking import Reply
from tc_export.parity.answers.statistics import Verdict
from tc_export.parity.cost.report import (
    cost_as_json,
    cost_as_tables,
    cost_failures,
    cost_warning,
    margins,
    notes,
)
from tc_export.parity.cost.result import (
    Change,
    Cost,
    CostLimits,
    NotMeasured,
    Tally,
    TextCost,
    divergence,
)
from tc_export.parity.reporting import spell_infinite
from tc_export.tasks import Kind, Split, make_item

TEXT = TextCost(
    passages=2,
    tokens=256,
    unquantised_perplexity=30.0,
    quantised_perplexity=33.0,
    kl=0.1,
    same_token=0.9,
)


def reply(text: str, *logits: float) -> Reply:
    return Reply(text=text, margin=1.0, first_logits=np.array(logits, dtype=np.float32))


def change(
    kind: Kind, seed: int, *, before: bool, after: bool, engine: bool | None = None
) -> Change:
    """An item that was answered right before, and is now, or not."""
    item = make_item(kind, 1, Split.TEST, seed)
    sides = (before, after, after if engine is None else engine)
    words = [item.answer if right else f"not {item.answer}" for right in sides]
    return Change.of(
        item,
        *(reply(word, 2.0, 1.0, float(right)) for word, right in zip(words, sides, strict=True)),
    )


def changes(kind: Kind, *, kept: int, lost: int = 0, won: int = 0, wrong: int = 0) -> list[Change]:
    marks = [(True, True)] * kept + [(True, False)] * lost
    marks += [(False, True)] * won + [(False, False)] * wrong
    return [change(kind, n, before=a, after=b) for n, (a, b) in enumerate(marks)]


def cost(*groups: Sequence[Change], strict: bool = False, most_lost: float = 0.02) -> Cost:
    return Cost(
        recipe="int4-awq",
        unquantised="some/where",
        is_checked=True,
        limits=CostLimits(most_lost=most_lost, strict=strict),
        changes=tuple(x for group in groups for x in group),
        text=TEXT,
    )


def test_margins_are_of_the_token_that_the_unquantised_model_begins_with() -> None:
    item = make_item(Kind.ORDER, 1, Split.TEST, 0)
    found = Change.of(
        item, reply("a", 1.0, 4.0, 2.5), reply("b", 3.0, 2.5, 0.0), reply("b", 9.0, 0.0, 0.0)
    )
    assert found.unquantised_margin == 1.5
    assert found.quantised_margin == -0.5
    assert found.flipped
    before, after = np.exp([1.0, 4.0, 2.5]), np.exp([3.0, 2.5, 0.0])
    p, q = before / before.sum(), after / after.sum()
    assert found.kl == pytest.approx(sum(p * np.log(p / q)))


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9), st.floats(-1e4, 1e4))
def test_divergence_takes_no_notice_of_a_constant(logits: list[float], constant: float) -> None:
    values = np.array(logits)
    assert divergence(values, values + constant) == pytest.approx(0.0, abs=1e-9)
    assert divergence(values, values[::-1]) >= -1e-12


def test_divergence_of_two() -> None:
    p = (0.9, 0.1)
    expected = 0.9 * log(0.9 / 0.5) + 0.1 * log(0.1 / 0.5)
    assert divergence(np.log(p), np.zeros(2)) == pytest.approx(expected)
    assert exp(-divergence(np.array([800.0, 0.0]), np.zeros(2))) == pytest.approx(0.5)


def test_a_tally_counts_each_way_of_turning() -> None:
    found = Tally.of(changes(Kind.ORDER, kept=5, lost=3, won=2, wrong=1))
    assert (found.items, found.lost, found.won) == (11, 3, 2)
    assert (found.unquantised_right, found.quantised_right, found.engine_right) == (8, 7, 7)
    assert found.difference == pytest.approx(-1 / 11)
    assert found.p_value == 1.0  # three against two


def test_the_engine_is_counted_apart() -> None:
    """An engine that answers otherwise than the quantised model is another question."""
    found = Tally.of([change(Kind.ORDER, 0, before=True, after=True, engine=False)])
    assert (found.quantised_right, found.engine_right) == (1, 0)
    assert (found.lost, found.won) == (0, 0)


def test_one_bad_kind_fails_among_many_good_ones() -> None:
    good = changes(Kind.COLOUR, kept=400)
    found = cost(good, changes(Kind.ORDER, kept=22, lost=8))
    assert not found.passed
    assert found.whole.verdict(found.limits) is not Verdict.WORSE  # it would be diluted
    (line,) = cost_failures(found)
    assert line.startswith("order: quantising cost 26.7 points (30 of 30 right before, 22 now)")
    assert "2 points may be lost" in line
    assert cost(good, changes(Kind.ORDER, kept=22, lost=8), most_lost=0.5).passed


def test_few_items_are_undecided_and_fail_only_where_that_is_asked_for() -> None:
    few = changes(Kind.ORDER, kept=30)
    assert cost(few).passed
    assert not cost_failures(cost(few))
    assert any("Undecided kinds (1) do not fail" in x for x in notes(cost(few)))
    assert any("About 189 items of a kind" in x and "--items 63" in x for x in notes(cost(few)))
    strict = cost(few, strict=True)
    assert not strict.passed
    lines = cost_failures(strict)
    assert [line.split(":")[0] for line in lines] == ["all", "order"]
    assert "not shown to have lost at most 2 points" in lines[1]
    assert "about 189 items would decide it" in lines[1]
    assert cost(changes(Kind.ORDER, kept=189), strict=True).passed


def test_more_right_answers_than_before_pass() -> None:
    assert cost(changes(Kind.ORDER, kept=10, won=20), strict=True).passed


def test_json_says_everything_and_is_json() -> None:
    document = cost_as_json(cost(changes(Kind.ORDER, kept=9, lost=1), changes(Kind.PART, kept=4)))
    document = json.loads(json.dumps(spell_infinite(document), allow_nan=False))
    assert document["measured"] is True
    assert document["passed"] is True
    assert set(document["by_kind"]) == {"order", "part"}
    order = document["by_kind"]["order"]
    assert order["accuracy"] == {"unquantised": 1.0, "quantised": 0.9, "engine": 0.9}
    assert (order["items"], order["lost"], order["won"]) == (10, 1, 0)
    assert order["verdict"] == "undecided"
    assert order["interval"][0] < order["difference"] < order["interval"][1]
    (flip,) = document["flips"]
    assert (flip["kind"], flip["seed"]) == ("order", 9)
    assert document["text"]["perplexity"] == {"unquantised": 30.0, "quantised": 33.0}
    assert document["all"]["items"] == 14


def test_what_was_not_measured_says_so_everywhere() -> None:
    missing = NotMeasured("it is gone: --unquantised DIR says where it is")
    assert cost_as_json(missing) == {"measured": False, "reason": missing.reason}
    assert missing.reason in (cost_warning(missing) or "")
    assert cost_failures(missing) == []
    assert cost_warning(cost(changes(Kind.ORDER, kept=1))) is None
    assert cost_as_tables(missing) is not None


def test_percentiles_of_margins() -> None:
    found = margins(changes(Kind.ORDER, kept=3, lost=1))
    assert found["unquantised"]["smallest"] == 1.0
    assert found["change"]["percentile_50"] == 0.0


def test_the_table_fits_a_terminal() -> None:
    printed = StringIO()
    groups = [changes(kind, kept=990, lost=9) for kind in Kind]
    Console(width=80, file=printed).print(cost_as_tables(cost(*groups)))
    table = printed.getvalue().split("margins:")[0]
    assert "…" not in table
    assert "-108 +0" in table
    for kind in Kind:
        assert kind.value in table
