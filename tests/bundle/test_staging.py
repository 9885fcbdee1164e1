# SPDX-License-Identifier: Apache-2.0
"""The output folder that cannot be, the disk that is full, the build that is not alone."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tc_export.bundle import Placement, open_staging, staging, verify
from tc_export.errors import TcExportError, UnsupportedEnvironment, UsageError
from tc_export.runner import Stage, StageContext
from tests.runner.toy import Toy, exit_code, in_child

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_RDONLY, _MS_REMOUNT = 1, 32


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 30 seconds"
        time.sleep(0.01)


def _slow(stages: list[Stage], name: str) -> list[Stage]:
    """The same stages, but one starts and never ends."""

    def hang(stage: Stage) -> Callable[[StageContext], None]:
        def run(context: StageContext) -> None:
            stage.run(context)
            time.sleep(60)

        return run

    return [replace(s, run=hang(s)) if s.name == name else s for s in stages]


class TestOutput:
    def test_its_parent_is_missing(self, tmp_path: Path) -> None:
        with (
            pytest.raises(UsageError, match="is not a folder") as caught,
            open_staging(tmp_path / "none" / "bundle"),
        ):
            pass
        assert "mkdir -p" in str(caught.value.hint)

    @pytest.mark.parametrize("content", ["file", "folder", "damaged", "with a foreign file"])
    def test_it_is_not_ours_to_replace(self, toy: Toy, content: str) -> None:
        if content == "file":
            toy.output.write_text("a thesis")
        elif content == "folder":
            toy.output.mkdir()
            (toy.output / "thesis.txt").write_text("a thesis")
        else:
            toy.build()
            if content == "damaged":
                (toy.output / "manifest.json").write_text("{}")
            else:
                (toy.output / "notes.txt").write_text("a thesis")
        before = sorted(toy.output.parent.rglob("*"))
        with pytest.raises(UsageError, match="would replace") as caught:
            toy.build(seed=2)
        assert str(toy.output) in str(caught.value)
        assert "another output" in str(caught.value.hint)
        assert sorted(toy.output.parent.rglob("*")) == before

    def test_somebody_puts_something_there_during_the_build(self, toy: Toy) -> None:
        def occupy(context: StageContext) -> None:
            toy.output.mkdir()
            (toy.output / "thesis.txt").write_text("a thesis")
            context.path("report.json").write_text("")

        stages = toy.stages()
        with pytest.raises(UsageError, match="would replace"):
            toy.build([*stages[:3], replace(stages[3], run=occupy)])
        assert (toy.output / "thesis.txt").read_text() == "a thesis"

    def test_an_empty_folder_will_do(self, toy: Toy) -> None:
        toy.output.mkdir()
        toy.build()
        assert verify(toy.output) == []
        assert [path.name for path in toy.output.parent.iterdir()] == ["bundle"]

    def test_a_link_to_a_bundle_stays_a_link(self, toy: Toy) -> None:
        toy.build()
        link = toy.root / "link"
        link.symlink_to(toy.output)
        with open_staging(link) as opened:
            assert opened.output == toy.output
        assert link.is_symlink()

    @pytest.mark.parametrize("kind", ["file", "folder", "link"])
    def test_the_staging_folder_is_somebody_elses(self, toy: Toy, kind: str) -> None:
        if kind == "file":
            toy.building.write_text("a thesis")
        elif kind == "folder":
            toy.building.mkdir()
            (toy.building / "thesis.txt").write_text("a thesis")
        else:
            toy.building.symlink_to(toy.root)
        with pytest.raises(UsageError, match="the build needs"):
            toy.build()
        assert os.path.lexists(toy.building)
        assert not (toy.building / "lock").exists()

    def test_publishing_fails_between_the_two_renames(
        self, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        toy.build()
        before = toy.hashes()
        rename = Path.rename

        def fail(path: Path, target: Path) -> Path:
            if path == toy.building / "bundle":
                raise OSError(errno.EIO, "Input/output error")
            return rename(path, target)

        monkeypatch.setattr(staging, "exchange", lambda first, second: False)
        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="Input/output"):
            toy.build(seed=2)
        assert toy.hashes() == before


class TestTwoBuilds:
    def test_the_second_is_told_who_holds_the_lock(self, toy: Toy) -> None:
        first = in_child(lambda: toy.build(_slow(toy.stages(), "engine")))
        _eventually(lambda: "engine" in toy.log.read_text())
        with pytest.raises(UnsupportedEnvironment, match=f"process {first.pid} on ") as caught:
            toy.build()
        assert "wait until it ends" in str(caught.value.hint)
        first.kill()
        assert exit_code(first) == -9

        toy.runs()
        toy.build()  # the lock of a dead process holds nobody up
        assert toy.runs() == {"engine": 1, "report": 1}

    def test_the_lock_of_a_folder_that_was_just_removed_is_taken_again(
        self, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other build ends, and removes the folder, while this one stands at the lock."""
        flock = fcntl.flock
        opened: list[int] = []

        def late(descriptor: int, operation: int) -> None:
            opened.append(descriptor)
            if len(opened) == 1:
                (toy.building / "lock").unlink()
                toy.building.rmdir()
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        with open_staging(toy.output):
            assert (toy.building / "lock").exists()
        assert len(opened) == 2

    def test_the_lock_is_held_until_the_folder_is_gone(
        self, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        remove = staging.remove
        refused = []

        def another_comes(path: Path) -> None:
            if path == toy.building / "bundle":
                monkeypatch.setattr(staging, "remove", remove)
                refused.append(_failure(toy.build))
            remove(path)

        monkeypatch.setattr(staging, "remove", another_comes)
        toy.build()
        assert [failure.get("kind") for failure in refused] == ["UnsupportedEnvironment"]

    def test_many_at_once_give_one_whole_bundle(self, toy: Toy) -> None:
        def build() -> None:
            for seed in (1, 2) * 5:
                with contextlib.suppress(UnsupportedEnvironment):
                    toy.build(seed=seed)
                if toy.output.exists():
                    assert (toy.output / "manifest.json").exists()

        children = [in_child(build) for _ in range(3)]
        assert [exit_code(child) for child in children] == [0, 0, 0]
        assert verify(toy.output) == []


def test_ctrl_c_keeps_what_is_done(toy: Toy) -> None:
    said = toy.root / "said"

    def build() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            toy.build(_slow(toy.stages(), "engine"))
        except KeyboardInterrupt as error:
            said.write_text(str(error))

    child = in_child(build)
    _eventually(lambda: "engine" in toy.log.read_text())
    os.kill(child.pid or 0, signal.SIGINT)
    assert exit_code(child) == 0
    assert "2 finished stages kept" in said.read_text()
    assert "same command resumes" in said.read_text()
    assert not toy.output.exists()
    toy.runs()
    toy.build()
    assert toy.runs() == {"engine": 1, "report": 1}


def test_ctrl_c_before_anything_is_done_leaves_nothing(toy: Toy) -> None:
    def interrupted(context: StageContext) -> None:
        raise KeyboardInterrupt

    stages = toy.stages()
    with pytest.raises(KeyboardInterrupt, match="nothing is left behind"):
        toy.build([replace(stages[0], run=interrupted), *stages[1:]])
    assert list(toy.output.parent.iterdir()) == []


def _padded(stages: list[Stage], name: str, kibibytes: int) -> list[Stage]:
    """The same stages, but the outputs of one are large."""

    def pad(stage: Stage) -> Callable[[StageContext], object]:
        def run(context: StageContext) -> object:
            results = stage.run(context)
            with (context.folder / stage.outputs[0]).open("ab") as file:
                for _ in range(kibibytes):
                    file.write(os.urandom(1024))
            return results

        return run

    return [
        replace(s, run=pad(s), key={"padded": kibibytes}) if s.name == name else s  # type: ignore[arg-type]
        for s in stages
    ]


def _failure(build: Callable[[], object]) -> dict[str, str]:
    try:
        build()
    except TcExportError as error:
        return {"kind": type(error).__name__, "text": str(error), "hint": str(error.hint)}
    return {}


def _mount(where: Path, options: str, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    names = (b"none", os.fsencode(where), b"tmpfs")
    if libc.mount(*names, flags, options.encode()):
        raise OSError(ctypes.get_errno(), "mount")


def _on_own_mount(toy: Toy, options: str, work: Callable[[], object]) -> object:
    """Run `work` in a child whose output's parent is a file system of its own."""
    told = toy.root / "told.json"

    def main() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        try:
            if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
                raise OSError(ctypes.get_errno(), "unshare")
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
            _mount(toy.output.parent, options)
        except OSError as error:
            told.write_text(json.dumps({"skip": str(error)}))
            return
        told.write_text(json.dumps(work()))

    assert exit_code(in_child(main)) == 0
    result = json.loads(told.read_text())
    if "skip" in result:
        pytest.skip(f"this system lets nobody mount a small file system: {result['skip']}")
    return result


def test_the_disk_is_full_and_then_it_is_not(toy: Toy) -> None:
    toy.placement = Placement.AUTO  # the checkpoint is on another file system

    def work() -> object:
        stages = _padded(toy.stages(), "engine", 512)
        failure = _failure(lambda: toy.build(stages))
        before = {
            "published": toy.output.exists(),
            "half": (toy.building / "bundle/engine/model.bin").exists(),
            "runs": toy.runs(),
        }
        _mount(toy.output.parent, "size=4m", _MS_REMOUNT)
        toy.build(stages)
        return [failure, before, {"runs": toy.runs(), "problems": len(verify(toy.output))}]

    failure, before, after = _on_own_mount(toy, "size=256k", work)  # type: ignore[misc]
    assert failure["kind"] == "UnsupportedEnvironment"
    assert "No space left on device" in failure["text"]
    assert "GiB free" in failure["text"]
    assert "finished stages are kept" in failure["hint"]
    expected_runs = {"graph": 1, "weights": 1, "engine": 1}
    assert before == {"published": False, "half": False, "runs": expected_runs}
    assert after == {"runs": {"engine": 1, "report": 1}, "problems": 0}


def test_the_output_folder_is_read_only(toy: Toy) -> None:
    def work() -> object:
        _mount(toy.output.parent, "size=1m", _MS_REMOUNT | _MS_RDONLY)
        return _failure(toy.build)

    failure = _on_own_mount(toy, "size=1m", work)
    assert isinstance(failure, dict)
    assert failure["kind"] == "UnsupportedEnvironment"
    assert "Read-only file system" in failure["text"]
    assert str(toy.output.parent) in failure["hint"]


def test_a_file_may_not_grow_so_large(toy: Toy) -> None:
    told = toy.root / "told.json"

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        told.write_text(
            json.dumps(_failure(lambda: toy.build(_padded(toy.stages(), "engine", 512))))
        )

    assert exit_code(in_child(work)) == 0
    failure = json.loads(told.read_text())
    assert failure["kind"] == "UnsupportedEnvironment"
    assert "File too large" in failure["text"]


def test_a_native_library_tells_of_a_full_disk_in_words_only(toy: Toy) -> None:
    def fail(context: StageContext) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    stages = toy.stages()
    with pytest.raises(UnsupportedEnvironment, match="No space left on device"):
        toy.build([*stages[:2], replace(stages[2], run=fail), stages[3]])


def test_the_disk_is_full_when_the_state_is_written(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = staging.write_atomically

    def fail(path: Path, text: str) -> None:
        if "engine" in json.loads(text)["stages"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "write_atomically", fail)
        with pytest.raises(UnsupportedEnvironment, match="No space left"):
            toy.build()
    toy.runs()
    toy.build()
    assert toy.runs() == {"engine": 1, "report": 1}


def test_an_error_about_another_file_stays_what_it_is(toy: Toy) -> None:
    def fail(context: StageContext) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/checkpoint/model.safetensors")

    stages = toy.stages()
    with pytest.raises(PermissionError, match=r"model\.safetensors"):
        toy.build([replace(stages[0], run=fail), *stages[1:]])
