# SPDX-License-Identifier: Apache-2.0
"""A build is killed at every point that matters, and then run again."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from tc_export.bundle import Staging, open_staging, staging, verify
from tc_export.cli.signals import TERMINATED, termination_as_interrupt
from tc_export.errors import CheckFailed
from tc_export.runner import SilentReporter, Stage, StageContext, run_stages
from tests.runner.toy import NAMES, SPEC, Toy, die, exit_code, in_child

# Each is a point of its own, before and after: all that touches the disk outside the stages.
_STEPS = (
    (Staging, "keep"),
    (Staging, "_save"),
    (Staging, "reuse"),
    (Staging, "_swap"),
    (Path, "rename"),
    (Path, "replace"),
    (staging, "write_manifest"),
    (staging, "link_or_copy"),
    (staging, "place_file"),
    (staging, "remove"),
)


def _instrument(tick: Callable[[str], None], note_kept: Callable[[str], None]) -> None:
    """Call `tick` around each step. Only ever done in a child process."""

    def around(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(step)
        def stepped(*args: Any) -> Any:
            tick(f"before {name}")
            result = step(*args)
            if name == "keep":
                note_kept(args[1])
            tick(f"after {name}")
            return result

        return stepped

    for owner, name in _STEPS:
        setattr(owner, name, around(name, getattr(owner, name)))


def _build_and_die(toy: Toy, seed: int, at: int, *, swap: bool) -> tuple[list[str], list[str]]:
    """Kill a build at its tick number `at`, or never; return the ticks that it came to, and the
    stages that it had put into its state.
    """
    told_path = toy.root / "told.json"
    ticks: list[str] = []
    kept: list[str] = []

    def tell() -> None:
        told_path.write_text(json.dumps({"ticks": ticks, "kept": kept}))

    def tick(name: str) -> None:
        if len(ticks) == at:
            tell()
            die()
        ticks.append(name)

    def work() -> None:
        if not swap:
            staging.exchange = lambda first, second: False  # type: ignore[attr-defined]
        _instrument(tick, kept.append)
        toy.build(seed=seed, tick=tick)
        tell()

    code = exit_code(in_child(work))
    assert code == (0 if at < 0 else -9)
    told = json.loads(told_path.read_text())
    return told["ticks"], told["kept"]


@pytest.mark.parametrize("swap", [True, False], ids=["swap", "two-renames"])
@pytest.mark.parametrize("over_old_bundle", [False, True], ids=["fresh", "rebuild"])
def test_a_build_killed_anywhere_resumes(tmp_path: Path, over_old_bundle: bool, swap: bool) -> None:
    def start(name: str) -> Toy:
        root = tmp_path / name
        root.mkdir()
        toy = Toy(root)
        if over_old_bundle:
            toy.build(seed=1)
            toy.runs()
        return toy

    reference = start("reference")
    old = reference.hashes()
    ticks, _ = _build_and_die(reference, 2, -1, swap=swap)
    new = reference.hashes()
    assert len(ticks) > 25
    assert [path.name for path in reference.output.parent.iterdir()] == ["bundle"]
    assert {f"middle of {name}" for name in ("graph", "engine", "report")} <= set(ticks)

    # How the bundle is published makes no difference before it is.
    first = 0 if swap else ticks.index("before _swap")
    for at, name in list(enumerate(ticks))[first:]:
        where = f"killed at {at}: {name}"
        toy = start(str(at))
        _, kept = _build_and_die(toy, 2, at, swap=swap)
        killed_runs = toy.runs()
        if toy.output.exists():
            assert verify(toy.output) == [], where
            assert toy.hashes() in ((old, new) if over_old_bundle else (new,)), where
        else:
            assert not (over_old_bundle and swap), f"{where}: the old bundle is gone"

        toy.build(seed=2)

        runs = toy.runs()
        assert verify(toy.output) == [], where
        assert toy.hashes() == new, where
        assert [path.name for path in toy.output.parent.iterdir()] == ["bundle"], where
        for stage in NAMES:
            assert runs[stage] <= int(stage not in kept), f"{where}: {stage} ran again"
            assert killed_runs[stage] <= 1, where


def test_a_changed_seed_does_not_resume_from_the_old_one(toy: Toy) -> None:
    def tick(name: str) -> None:
        if name == "middle of report":
            die()

    assert exit_code(in_child(lambda: toy.build(seed=1, tick=tick))) == -9
    toy.runs()
    toy.build(seed=2)
    assert toy.runs() == {"graph": 1, "engine": 1, "report": 1}
    assert (toy.output / "graph/a.onnx").read_text() == "a 2"


def test_the_old_bundle_is_back_even_when_the_next_build_fails(tmp_path: Path) -> None:
    """Killed between the two renames, where folders cannot be swapped."""

    def fail(context: StageContext) -> None:
        raise CheckFailed("planted")

    toys = []
    for name in ("reference", "killed"):
        (tmp_path / name).mkdir()
        toys.append(Toy(tmp_path / name))
        toys[-1].build(seed=1)
    reference, toy = toys
    old = toy.hashes()
    ticks, _ = _build_and_die(reference, 2, -1, swap=False)
    _build_and_die(toy, 2, ticks.index("after rename"), swap=False)
    assert not toy.output.exists()

    stages = toy.stages(seed=3)
    with pytest.raises(CheckFailed, match="planted"):
        toy.build([replace(stages[0], run=fail), *stages[1:]])
    assert toy.hashes() == old
    assert verify(toy.output) == []


def _terminated(work: Callable[[], object]) -> tuple[int | None, str]:
    """Run `work` in a child as the command line does; return its exit code, and what was said."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def main() -> None:
        with termination_as_interrupt() as was_terminated:
            try:
                work()
            except KeyboardInterrupt as interrupt:
                sender.send(str(interrupt))
        os._exit(TERMINATED if was_terminated() else 0)

    code = exit_code(in_child(main))
    return code, receiver.recv() if receiver.poll() else ""


def _terminate_at(moment: str) -> Callable[[str], None]:
    def tick(name: str) -> None:
        if name == moment:
            os.kill(os.getpid(), signal.SIGTERM)

    return tick


@pytest.mark.parametrize(
    ("name", "over_old_bundle"),
    [(name, False) for name in NAMES] + [(name, True) for name in ("graph", "engine", "report")],
)
def test_a_build_that_sigterm_ends_resumes(toy: Toy, name: str, over_old_bundle: bool) -> None:
    if over_old_bundle:
        toy.build(seed=1)
        toy.runs()
    old = toy.hashes()

    tick = _terminate_at(f"middle of {name}")
    code, said = _terminated(lambda: toy.build(seed=2, tick=tick))

    kept = NAMES.index(name)  # stages that had ended
    assert code == TERMINATED
    assert ("nothing is left behind" if name == "graph" else f"{kept} finished stage") in said
    assert toy.hashes() == old
    assert toy.building.exists() == (name != "graph")
    assert (toy.building / "bundle/engine/model.bin").exists() == (name == "report")
    ran = toy.runs()
    toy.build(seed=2)
    ran += toy.runs()
    assert ran == {stage: 1 + (stage == name) for stage in ran}
    assert verify(toy.output) == []
    assert [path.name for path in toy.output.parent.iterdir()] == ["bundle"]


def _swallow(context: StageContext) -> None:
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_that_a_library_swallows_ends_the_build(toy: Toy) -> None:
    stages = toy.stages()
    library = replace(stages[1], name="library", outputs=(), run=_swallow)
    code, said = _terminated(lambda: toy.build([stages[0], library, *stages[1:]]))
    assert code == TERMINATED
    assert "2 finished stages kept" in said
    assert toy.runs() == {"graph": 1}


def _finalise(context: StageContext) -> None:
    def terminate(dead: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # the handler is called in here, and Python swallows what it raises

    thing = Stage(name="", description="", key={}, outputs=(), run=_finalise)
    watch = weakref.ref(thing, terminate)
    del thing
    assert watch() is None


def test_sigterm_while_something_is_finalised_ends_the_build_quietly(toy: Toy) -> None:
    stages = toy.stages()
    library = replace(stages[1], name="library", outputs=(), run=_finalise)

    def work() -> None:
        told: list[object] = []
        sys.unraisablehook = told.append
        try:
            toy.build([stages[0], library, *stages[1:]])
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(f"{interrupt}; told of {len(told)}") from interrupt

    code, said = _terminated(work)
    assert code == TERMINATED
    assert "2 finished stages kept" in said
    assert "told of 0" in said


def test_sigterm_ends_what_a_stage_beside_has_started(toy: Toy) -> None:
    """It runs in a thread, which no exception reaches: the compiler in it must end."""

    def compile_(context: StageContext) -> None:
        with subprocess.Popen(["sleep", "600"]) as compiler:
            os.kill(os.getpid(), signal.SIGTERM)
            if compiler.wait() != 0:
                raise CheckFailed("the compiler failed")

    stages = [
        Stage(name="kept", description="", key={}, outputs=(), run=lambda context: None),
        Stage(name="plugins", description="", key={}, outputs=(), run=compile_, in_subprocess=True),
    ]

    def work() -> None:
        with open_staging(toy.output) as opened:
            run_stages(opened, stages, SPEC, SilentReporter(), jobs=2)

    start = time.monotonic()
    code, said = _terminated(work)
    assert code == TERMINATED
    assert said.startswith("interrupted")
    assert time.monotonic() - start < 30
