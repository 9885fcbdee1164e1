# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a build, at a terminal and in a log."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import pytest
from rich.console import Console

from tc_export.runner import RichReporter, Stage, StageContext
from tests.runner.toy import NAMES, Toy


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def read(self, what: str, done_bytes: int, total_bytes: int) -> None:
        self.events.append(("read", what, done_bytes, total_bytes))

    def listed(self, stages: Sequence[Stage]) -> None:
        self.events.append(("listed", *(stage.name for stage in stages)))

    def skipped(self, stage: Stage) -> None:
        self.events.append(("skipped", stage.name))

    def started(self, stage: Stage) -> None:
        self.events.append(("started", stage.name))

    def advanced(self, stage: Stage, done: float, total: float | None) -> None:
        self.events.append(("advanced", stage.name, done, total))

    def finished(self, stage: Stage, seconds: float) -> None:
        assert seconds >= 0
        self.events.append(("finished", stage.name))


def _counting(context: StageContext) -> None:
    context.advance(1)
    context.advance(2, 4)


def test_events_come_in_order(toy: Toy) -> None:
    toy.build()
    recorder = Recorder()
    last = Stage(name="last", description="count", key={}, outputs=(), run=_counting)
    toy.build([*toy.stages(), last], reporter=recorder)
    assert recorder.events == [
        ("listed", *NAMES, "last"),
        *(("skipped", name) for name in NAMES),
        ("started", "last"),
        ("advanced", "last", 1, None),
        ("advanced", "last", 2, 4),
        ("finished", "last"),
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_each_stage_has_its_line(toy: Toy, terminal: bool) -> None:
    def build(seed: int) -> str:
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
        with RichReporter(console) as reporter:
            toy.build(seed=seed, reporter=reporter)
        return out.getvalue()

    first, second = build(1), build(2)
    for number, phrase in enumerate(("write the graph", "take the weights"), start=1):
        assert re.search(rf"\[{number}/4\] {phrase}: done in \d+\.\d s", first)
        assert (f"[{number}/4] {phrase} …" in first) is not terminal
    assert "[2/4] take the weights: unchanged" in second
    assert "[1/4] write the graph: done" in second


def test_a_bar_shows_how_far_it_is() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    stage = Stage(name="s", description="[odd] name", key={}, outputs=(), run=_counting)
    with RichReporter(console) as reporter:
        reporter.listed([stage])
        reporter.started(stage)
        reporter.advanced(stage, 2, 4)
        (task,) = reporter._progress.tasks
        assert task.percentage == 50
        reporter.finished(stage, 1.25)
        assert reporter._progress.tasks == []
    assert "[1/1] [odd] name: done in 1.2 s" in out.getvalue()


def test_what_is_read_before_the_stages_has_a_bar() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with RichReporter(console) as reporter:
        reporter.read("the checkpoint", 10, 40)
        (task,) = reporter._progress.tasks
        assert (task.description, task.percentage) == ("read the checkpoint", 25)
        reporter.read("the checkpoint", 40, 40)
        assert reporter._progress.tasks == []
