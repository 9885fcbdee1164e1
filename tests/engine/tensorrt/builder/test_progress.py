# SPDX-License-Identifier: Apache-2.0
"""The fraction that nested phases make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tc_export.engine.tensorrt.builder.progress import Phases


def recorder() -> tuple[Phases, list[float]]:
    told: list[float] = []

    def note(fraction: float) -> bool:
        told.append(fraction)
        return True

    return Phases(note), told


def test_a_phase_inside_another_is_worth_one_of_its_steps() -> None:
    phases, told = recorder()
    phases.start("engine", None, 4)
    assert phases.step("engine", 0)
    phases.start("graph", "engine", 2)
    phases.start("tactics", "graph", 5)
    phases.step("tactics", 1)
    phases.finish("tactics")
    phases.step("graph", 0)
    phases.finish("graph")
    phases.step("engine", 1)
    phases.finish("engine")
    # 1/4, then 2/5 of a half of a quarter, a half of a quarter, two quarters, and the end.
    assert told == pytest.approx([0.25, 0.25 + 0.4 / 8, 0.25 + 1 / 8, 0.5, 1.0])


def test_a_phase_that_comes_again_takes_nothing_back() -> None:
    phases, told = recorder()
    phases.start("engine", None, 2)
    for _ in range(3):
        phases.start("formats", "engine", 4)
        phases.step("formats", 2)
        phases.finish("formats")
    assert told == pytest.approx([0.375, 0.5])


def test_who_listens_can_stop_it() -> None:
    phases = Phases(lambda fraction: False)
    phases.start("engine", None, 10)
    assert not phases.step("engine", 0)
    assert not phases.step("engine", 1)


def test_small_steps_are_not_told_one_by_one() -> None:
    phases, told = recorder()
    phases.start("engine", None, 100_000)
    for step in range(100_000):
        phases.step("engine", step)
    assert 100 < len(told) <= 500
    assert told[-1] == 1


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["start", "step", "finish"]),
        st.sampled_from("abcd"),
        st.sampled_from([None, *"abcd"]),
        st.integers(0, 5),
    )
)


@given(EVENTS)
def test_whatever_comes_the_fraction_grows_and_ends_at_one(
    events: list[tuple[str, str, str | None, int]],
) -> None:
    phases, told = recorder()
    for what, name, parent, number in events:
        if what == "start":
            phases.start(name, parent if parent is None or parent < name else None, number)
        elif what == "step":
            phases.step(name, number)
        else:
            phases.finish(name)
    assert told == sorted(set(told))
    assert all(0 < fraction <= 1 for fraction in told)
