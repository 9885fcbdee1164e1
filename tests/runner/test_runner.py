# SPDX-License-Identifier: Apache-2.0
"""Which stages run, which are skipped, and which lists of stages are refused."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tc_export import digests as digests_module
from tc_export.bundle import (
    Placement,
    StageRecord,
    StageResults,
    open_staging,
    verify,
)
from tc_export.digests import Digests
from tc_export.errors import CheckFailed, TcExportError
from tc_export.runner import SilentReporter, Stage, StageContext, is_up_to_date, run_stages
from tests.runner.toy import NAMES, SPEC, Toy


def _fail_after(stages: list[Stage], count: int) -> list[Stage]:
    """The same stages, but the one after the first `count` fails."""

    def fail(context: StageContext) -> None:
        raise CheckFailed("planted")

    return [*stages[:count], replace(stages[count], run=fail), *stages[count + 1 :]]


def test_a_build_is_whole_and_leaves_nothing_beside_it(toy: Toy) -> None:
    manifest = toy.build()
    assert toy.runs() == dict.fromkeys(NAMES, 1)
    assert {path: file.sha256 for path, file in manifest.files.items()} == toy.hashes()
    assert [path.name for path in toy.output.parent.iterdir()] == ["bundle"]
    assert manifest.custom_nodes == {"decoder": {"TcDualRope": 2}}
    assert manifest.precision_realised == {"decoder": "float32"}
    assert manifest.engine is not None
    assert manifest.engine.state == "built"


def test_a_large_file_is_linked_and_not_copied(toy: Toy) -> None:
    toy.build()
    assert (toy.output / "weights.bin").samefile(toy.checkpoint)


def test_links_are_followed(toy: Toy) -> None:
    real = toy.root / "blob"
    toy.checkpoint.rename(real)
    toy.checkpoint.symlink_to(real)
    toy.build()
    assert not (toy.output / "weights.bin").is_symlink()
    assert (toy.output / "weights.bin").samefile(real)


def test_where_no_link_can_be_the_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*args: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    toy = Toy(tmp_path, Placement.AUTO)
    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(fcntl, "ioctl", no_link)
    toy.build()
    assert not (toy.output / "weights.bin").samefile(toy.checkpoint)
    before = toy.hashes()
    toy.build(seed=2)
    assert toy.runs()["weights"] == 1
    assert toy.hashes()["weights.bin"] == before["weights.bin"]


def test_the_same_build_again_does_nothing(toy: Toy) -> None:
    toy.build()
    toy.runs()
    before = toy.output.stat().st_ino, (toy.output / "manifest.json").stat().st_mtime_ns
    toy.build()
    assert not toy.runs()
    assert (toy.output.stat().st_ino, (toy.output / "manifest.json").stat().st_mtime_ns) == before
    assert [path.name for path in toy.output.parent.iterdir()] == ["bundle"]


def test_a_changed_key_runs_its_stage_and_those_that_need_it(toy: Toy) -> None:
    toy.build()
    toy.runs()
    untouched = (toy.output / "weights.bin").stat().st_ino
    toy.build(seed=2)
    assert toy.runs() == {"graph": 1, "engine": 1, "report": 1}
    assert (toy.output / "weights.bin").stat().st_ino == untouched
    assert verify(toy.output) == []


def test_a_changed_description_publishes_without_running(toy: Toy) -> None:
    stages = toy.stages()
    toy.build(stages)
    toy.runs()
    renamed = [replace(stage, description="in other words") for stage in stages]
    toy.build(renamed)
    assert not toy.runs()


@pytest.mark.parametrize("depends", ["key", "outputs", "needs", "name"])
def test_the_effective_key_depends_on(depends: str) -> None:
    record = StageRecord(key="1" * 64, seconds=1.0, files={})
    stage = Stage(
        name="s", description="d", key={"a": 1}, outputs=("x",), needs=("n",), run=lambda c: None
    )
    key = stage.effective_key({"n": record})
    assert key == replace(stage, description="e").effective_key({"n": record})
    assert key == stage.effective_key({"n": record.model_copy(update={"seconds": 2.0})})
    changed: dict[str, Stage] = {
        "key": replace(stage, key={"a": 2}),
        "outputs": replace(stage, outputs=("y",)),
        "needs": stage,
        "name": replace(stage, name="t"),
    }
    ended = {"n": record.model_copy(update={"key": "2" * 64}) if depends == "needs" else record}
    assert key != changed[depends].effective_key(ended)


def test_a_stage_that_is_only_after_another_does_not_depend_on_its_key(toy: Toy) -> None:
    first = _stage("first", ("x",))
    last = _stage("last", (), after=("first",))
    ran: list[str] = []

    def run(name: str) -> Callable[[StageContext], None]:
        def note(context: StageContext) -> None:
            ran.append(name)
            if name == "first":
                context.path("x").write_text("x")

        return note

    toy.build([replace(first, run=run("first")), replace(last, run=run("last"))])
    toy.build([replace(first, key={"a": 2}, run=run("first")), replace(last, run=run("last"))])
    assert ran == ["first", "last", "first"]


def test_another_result_from_the_same_key_runs_what_needs_it(toy: Toy) -> None:
    """Tools that do not build the same bytes twice must not leave a stale report."""
    stages = toy.stages()
    toy.build(stages)
    (toy.output / "graph/a.onnx").write_text("damaged")
    toy.runs()

    def other(context: StageContext) -> StageResults:
        context.path("graph/a.onnx").write_text("made otherwise")
        return StageResults()

    toy.build([replace(stages[0], run=other), *stages[1:]])
    assert toy.runs() == {"engine": 1, "report": 1}


def test_up_to_date_is_what_has_every_stage_with_its_key(toy: Toy) -> None:
    stages = toy.stages()
    whole = toy.build()
    assert is_up_to_date(whole, stages)
    assert is_up_to_date(whole, stages[:3])  # it may have more
    for changed in range(3):
        other = [
            replace(stage, key={"changed": True}) if index == changed else stage
            for index, stage in enumerate(stages)
        ]
        assert not is_up_to_date(whole, other)
    assert not is_up_to_date(toy.build(stages[:3]), stages)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.unlink()  # the file may be a link to the checkpoint
    path.write_bytes(data)


def _link_elsewhere(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


_DAMAGES = [_truncate, _flip_one_bit, Path.unlink, _link_elsewhere]


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_published_file_is_made_again(toy: Toy, damage: Any) -> None:
    toy.build()
    whole = toy.hashes()
    toy.runs()
    damage(toy.output / "engine/model.bin")
    toy.build()
    assert toy.runs() == {"engine": 1}
    assert toy.hashes() == whole
    assert verify(toy.output) == []


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_staged_file_is_made_again(toy: Toy, damage: Any) -> None:
    with pytest.raises(CheckFailed, match="planted"):
        toy.build(_fail_after(toy.stages(), 3))
    toy.runs()
    damage(toy.building / "bundle/graph/a.onnx")
    toy.build()
    assert toy.runs() == {"graph": 1, "report": 1}
    assert verify(toy.output) == []


def test_a_file_added_to_a_staged_output_makes_it_again(toy: Toy) -> None:
    with pytest.raises(CheckFailed):
        toy.build(_fail_after(toy.stages(), 3))
    toy.runs()
    (toy.building / "bundle/graph/more.onnx").write_text("?")
    toy.build()
    assert toy.runs()["graph"] == 1
    assert "graph/more.onnx" not in toy.hashes()


def test_a_failed_stage_leaves_no_output_and_the_others_are_kept(toy: Toy) -> None:
    def fail(context: StageContext) -> None:
        context.path("engine/model.bin").write_text("half")
        raise CheckFailed("planted")

    stages = toy.stages()
    with pytest.raises(CheckFailed, match="planted"):
        toy.build([*stages[:2], replace(stages[2], run=fail), stages[3]])
    assert not toy.output.exists()
    assert not (toy.building / "bundle/engine/model.bin").exists()
    toy.runs()
    toy.build()
    assert toy.runs() == {"engine": 1, "report": 1}


def test_a_failure_of_the_first_stage_leaves_nothing(toy: Toy) -> None:
    with pytest.raises(CheckFailed):
        toy.build(_fail_after(toy.stages(), 0))
    assert list(toy.output.parent.iterdir()) == []


def test_an_unreadable_state_starts_afresh(toy: Toy) -> None:
    with pytest.raises(CheckFailed):
        toy.build(_fail_after(toy.stages(), 3))
    (toy.building / "state.json").write_text('{"version": 99}')
    toy.runs()
    toy.build()
    assert toy.runs() == dict.fromkeys(NAMES, 1)


def test_a_stage_that_is_no_longer_wanted_takes_its_files_with_it(toy: Toy) -> None:
    toy.build()
    toy.build(toy.stages()[:3])
    assert "report.json" not in toy.hashes()
    assert verify(toy.output) == []


def test_so_do_those_that_a_failed_build_staged(toy: Toy) -> None:
    def fail(context: StageContext) -> None:
        raise CheckFailed("planted")

    with pytest.raises(CheckFailed):
        toy.build([*toy.stages(), replace(_stage("last", ()), run=fail)])
    assert (toy.building / "bundle/report.json").exists()
    toy.build(toy.stages()[:3])
    assert "report.json" not in toy.hashes()
    assert verify(toy.output) == []


def test_a_large_file_is_hashed_once_a_run(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    original = digests_module._sha256

    def counting(file: BinaryIO, on_read: Callable[[int], None]) -> str:
        hashed.append(os.fstat(file.fileno()).st_ino)
        return original(file, on_read)

    an_hour_ago = toy.checkpoint.stat().st_mtime - 3600
    os.utime(toy.checkpoint, (an_hour_ago, an_hour_ago))
    monkeypatch.setattr(digests_module, "_sha256", counting)
    with open_staging(toy.output) as staging:
        staging.digests.sha256(toy.checkpoint)  # as a pipeline does for the checkpoint's digest
        run_stages(staging, toy.stages(), SPEC, SilentReporter())
    assert hashed.count(toy.checkpoint.stat().st_ino) == 1


def test_a_large_file_is_hashed_once_over_several_builds(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    original = digests_module._sha256

    def counting(file: BinaryIO, on_read: Callable[[int], None]) -> str:
        hashed.append(Path(file.name).name)
        return original(file, on_read)

    os.utime(toy.checkpoint, (1_000_000_000, 1_000_000_000))
    monkeypatch.setattr(digests_module, "_sha256", counting)
    monkeypatch.setattr(digests_module, "LARGE_BYTES", toy.checkpoint.stat().st_size - 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    toy.build()
    assert hashed.count("weights.bin") == 1
    del hashed[:]
    toy.build()
    assert "a.onnx" in hashed
    assert "weights.bin" not in hashed


def test_a_hash_is_not_remembered_for_a_file_that_was_just_written(tmp_path: Path) -> None:
    """Two writes in one tick of the clock have one modification time, and may have one size."""
    path, digests = tmp_path / "file", Digests()
    for content in (b"one", b"two"):
        path.write_bytes(content)
        os.utime(path, ns=(path.stat().st_mtime_ns, 10**18 + path.stat().st_mtime_ns))
    assert digests.sha256(path) == hashlib.sha256(b"two").hexdigest()
    assert not digests.known


def _stage(name: str, outputs: tuple[str, ...], **more: Any) -> Stage:
    return Stage(name=name, description=name, key={}, outputs=outputs, run=lambda c: None, **more)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([_stage("a", ()), _stage("a", ())], "two stages are called 'a'"),
        ([_stage("a", (), needs=("b",)), _stage("b", ())], r"needs \['b'\]"),
        ([_stage("a", (), after=("b",)), _stage("b", ())], r"needs \['b'\]"),
        ([_stage("a", ("x",)), _stage("b", ("x/y",))], "both write"),
        ([_stage("a", ("x/y",)), _stage("b", ("x",))], "both write"),
        ([_stage("a", ("x",))], r"missing \['x'\]"),
    ],
)
def test_a_pipeline_that_cannot_be_right_is_refused(
    toy: Toy, stages: list[Stage], message: str
) -> None:
    with pytest.raises(TcExportError, match=message):
        toy.build(stages)
    assert list(toy.output.parent.iterdir()) == []


@pytest.mark.parametrize("output", ["/etc", "../x", "a/../b", "", "manifest.json", "a//b", "a/"])
def test_an_output_outside_the_bundle_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match=r"bundle|itself"):
        _stage("a", (output,))


def test_similar_names_do_not_overlap(toy: Toy) -> None:
    def write(name: str) -> Any:
        return lambda context: context.path(name).write_text(name) and None

    toy.build(
        [
            replace(_stage("a", ("x",)), run=write("x")),
            replace(_stage("b", ("xy",)), run=write("xy")),
        ]
    )
    assert set(toy.hashes()) == {"x", "xy"}


def test_a_stage_may_write_only_what_it_names(toy: Toy) -> None:
    def stray(context: StageContext) -> None:
        context.path("stray").write_text("?")

    with pytest.raises(TcExportError, match=r"wrote what it does not name: \['stray'\]"):
        toy.build([replace(_stage("a", ()), run=stray)])


@pytest.mark.parametrize("to", ["file", "folder"])
def test_a_stage_may_not_leave_a_link(toy: Toy, to: str) -> None:
    def link(context: StageContext) -> None:
        context.path("x").symlink_to(toy.checkpoint if to == "file" else toy.root)

    with pytest.raises(TcExportError, match=r"not plain files \['x'\]"):
        toy.build([replace(_stage("a", ("x",)), run=link)])


def test_a_stage_may_not_change_the_output_of_another(toy: Toy) -> None:
    stages = toy.stages()

    def meddle(context: StageContext) -> None:
        (context.folder / "graph/a.onnx").write_text("z 1")
        context.path("report.json").write_text("")

    with pytest.raises(TcExportError, match="'graph' changed after it had ended"):
        toy.build([*stages[:3], replace(stages[3], run=meddle)])
    assert not toy.output.exists()
