# SPDX-License-Identifier: Apache-2.0
"""Stages side by side: what may run at once, what waits, and what a failure leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tc_export.bundle import Manifest, StageResults, open_staging, verify
from tc_export.errors import CheckFailed
from tc_export.runner import SilentReporter, Stage, StageContext, run_stages
from tests.runner.toy import SPEC, Toy

SECONDS = 20.0  # far more than anything here takes


def stage(
    name: str,
    work: Callable[[StageContext], StageResults | None],
    *needs: str,
    in_subprocess: bool = False,
) -> Stage:
    """A stage that writes a file of its own name after its work."""

    def run(context: StageContext) -> StageResults | None:
        results = work(context)
        context.path(name).write_text(name)
        return results

    return Stage(
        name=name,
        description=name,
        key={},
        outputs=(name,),
        run=run,
        needs=needs,
        in_subprocess=in_subprocess,
    )


def build(toy: Toy, stages: list[Stage], jobs: int) -> Manifest:
    with open_staging(toy.output) as staging:
        return run_stages(staging, stages, SPEC, SilentReporter(), jobs=jobs)


def nothing(context: StageContext) -> None:
    """Do no work."""


def test_two_meet_where_two_may_run(toy: Toy) -> None:
    meeting = threading.Barrier(2, timeout=SECONDS)

    def meet(context: StageContext) -> None:
        meeting.wait()

    manifest = build(toy, [stage("far", meet, in_subprocess=True), stage("near", meet)], jobs=2)
    assert list(manifest.stages) == ["far", "near"]
    assert verify(toy.output) == []


def test_one_at_a_time_is_in_order(toy: Toy) -> None:
    threads, order = set(), []

    def note(context: StageContext) -> None:
        threads.add(threading.current_thread())
        order.append(len(order))

    build(
        toy,
        [
            stage("a", note, in_subprocess=True),
            stage("b", note),
            stage("c", note, in_subprocess=True),
        ],
        1,
    )
    assert threads == {threading.main_thread()}
    assert order == [0, 1, 2]


def test_a_stage_waits_for_those_that_it_needs(toy: Toy) -> None:
    def slow(context: StageContext) -> StageResults:
        threading.Event().wait(0.2)
        return StageResults(custom_nodes={"decoder": {"Op": 7}})

    def read(context: StageContext) -> None:
        assert (context.folder / "slow").read_text() == "slow"
        assert context.results.custom_nodes == {"decoder": {"Op": 7}}

    build(toy, [stage("slow", slow, in_subprocess=True), stage("reader", read, "slow")], jobs=3)


def test_a_stage_waits_for_all_that_it_needs(toy: Toy) -> None:
    """One of them ends at once, and the other only when nothing but the waiting stage is left."""
    begun = threading.Event()

    def slow(context: StageContext) -> None:
        assert begun.wait(SECONDS)
        threading.Event().wait(0.2)

    def read(context: StageContext) -> None:
        assert (context.folder / "slow").exists()

    stages = [
        stage("slow", slow, in_subprocess=True),
        stage("fast", lambda context: begun.set()),
        stage("reader", read, "fast", "slow"),
        stage("reader beside", read, "fast", "slow", in_subprocess=True),
    ]
    build(toy, stages, jobs=3)


def test_a_stage_waits_for_those_that_it_is_after(toy: Toy) -> None:
    def slow(context: StageContext) -> None:
        threading.Event().wait(0.2)

    def read(context: StageContext) -> None:
        assert (context.folder / "slow").exists()

    reader = replace(stage("reader", read), after=("slow",))
    build(toy, [stage("slow", slow, in_subprocess=True), reader], jobs=3)


def test_no_more_than_so_many_run(toy: Toy) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(context: StageContext) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.05)
        with lock:
            running -= 1

    build(toy, [stage(f"s{number}", work, in_subprocess=True) for number in range(6)], jobs=3)
    assert most == 3


def test_a_failure_stops_what_runs_beside_it(toy: Toy) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def endless(context: StageContext) -> None:
        try:
            for step in range(int(100 * SECONDS)):
                context.advance(step)
                begun.set()
                threading.Event().wait(0.01)
        finally:
            cancelled.set()

    def fail(context: StageContext) -> None:
        assert begun.wait(SECONDS)
        raise CheckFailed("planted")

    stages = [
        stage("kept", nothing),
        stage("endless", endless, in_subprocess=True),
        stage("bad", fail),
    ]
    with pytest.raises(CheckFailed, match="planted"):
        build(toy, stages, jobs=2)
    assert cancelled.is_set()
    staged = toy.building / "bundle"
    assert [path.name for path in staged.iterdir()] == ["kept"]


def test_a_failure_beside_is_the_failure_of_the_build(toy: Toy) -> None:
    def fail(context: StageContext) -> None:
        raise CheckFailed("planted beside")

    with pytest.raises(CheckFailed, match="planted beside"):
        build(toy, [stage("bad", fail, in_subprocess=True), stage("good", nothing)], jobs=2)
    assert not toy.output.exists()


def test_what_ends_well_beside_a_failure_is_kept(toy: Toy) -> None:
    failed = threading.Event()

    def finish(context: StageContext) -> None:
        assert failed.wait(SECONDS)

    def fail(context: StageContext) -> None:
        failed.set()
        raise CheckFailed("planted")

    stages = [stage("long", finish, in_subprocess=True), stage("bad", fail)]
    with pytest.raises(CheckFailed):
        build(toy, stages, jobs=2)
    assert (toy.building / "bundle" / "long").read_text() == "long"


def test_scratch_files_of_a_stage_that_still_runs_are_left_alone(toy: Toy) -> None:
    """A builder writes beside its output, and others end in the meantime."""
    written, ended = threading.Event(), threading.Event()

    def with_scratch(context: StageContext) -> None:
        scratch = context.path(".far.partial")
        scratch.write_text("half")
        written.set()
        assert ended.wait(SECONDS)
        scratch.unlink()

    def near(context: StageContext) -> None:
        assert written.wait(SECONDS)

    stages = [
        stage("far", with_scratch, in_subprocess=True),
        stage("near", near),
        stage("after", lambda context: ended.set(), "near"),
    ]
    build(toy, stages, jobs=2)
    assert verify(toy.output) == []


def test_what_goes_wrong_after_a_failure_does_not_hide_it(toy: Toy) -> None:
    """The stage beside the one that fails ends, but not as it should."""
    failed = threading.Event()

    def write_nothing(context: StageContext) -> None:
        assert failed.wait(SECONDS)

    def fail(context: StageContext) -> None:
        failed.set()
        raise CheckFailed("planted")

    beside = replace(stage("beside", nothing, in_subprocess=True), run=write_nothing)
    with pytest.raises(CheckFailed, match="planted"):
        build(toy, [stage("kept", nothing), beside, stage("bad", fail)], jobs=2)
    assert [path.name for path in (toy.building / "bundle").iterdir()] == ["kept"]


def swallow(context: StageContext) -> None:
    """Do as a library does that catches everything."""
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def misname(context: StageContext) -> None:
    """Do as a library does that wraps everything."""
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as error:
        raise RuntimeError("the export failed") from error


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("library", "kept"), [(swallow, 2), (misname, 1)])
def test_an_interrupt_that_a_library_catches_ends_the_build(
    toy: Toy, library: Callable[[StageContext], None], kept: int, jobs: int
) -> None:
    after: list[str] = []
    stages = [
        stage("kept", nothing),
        stage("library", library),
        stage("after", lambda context: after.append("ran")),
    ]
    with pytest.raises(KeyboardInterrupt, match=f"{kept} finished stage.* kept"):
        build(toy, stages, jobs=jobs)
    assert not after
    assert not toy.output.exists()


def test_an_interrupt_stops_what_runs_beside(toy: Toy) -> None:
    """It comes while there is nothing to do here but wait."""

    def endless(context: StageContext) -> None:
        context.path("endless").write_text("half")
        for step in range(int(100 * SECONDS)):
            context.advance(step)
            if step == 10:
                os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.01)

    with pytest.raises(KeyboardInterrupt, match="1 finished stage kept"):
        build(toy, [stage("kept", nothing), stage("endless", endless, in_subprocess=True)], jobs=2)
    assert [path.name for path in (toy.building / "bundle").iterdir()] == ["kept"]


def test_interrupts_are_given_back_to_who_had_them(toy: Toy) -> None:
    def fail(context: StageContext) -> None:
        raise CheckFailed("planted")

    before = signal.getsignal(signal.SIGINT)
    build(toy, [stage("good", nothing)], jobs=1)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(CheckFailed):
        build(toy, [stage("bad", fail)], jobs=1)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_build_need_not_be_in_the_main_thread(toy: Toy) -> None:
    """Where signals cannot be handled."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(build, toy, [stage("far", nothing, in_subprocess=True)], 2).result(SECONDS)
    assert verify(toy.output) == []
