# SPDX-License-Identifier: Apache-2.0
"""How a file comes into a bundle: what is tried, in which order, and what is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tc_export.bundle import Placement, open_staging, place_file, placement, verify
from tc_export.bundle.placement import link_or_copy
from tc_export.errors import UnsupportedEnvironment
from tc_export.runner import Stage, StageContext
from tests.runner.toy import Toy, die, exit_code, in_child

CONTENT = b"weights" * 1000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "bundle" / "graphs" / "model.safetensors"


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def failing(number: int) -> Callable[..., None]:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def share_blocks(made: int, request: int, original: int) -> None:
    """Stands in for FICLONE where the file system has none: the content is the same."""
    assert request == 0x40049409
    os.write(made, os.pread(original, len(CONTENT) + 1, 0))


def test_a_reflink_is_tried_first(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", share_blocks)
    place_file(source, destination)
    assert destination.read_bytes() == CONTENT
    assert not destination.samefile(source)
    assert source.stat().st_nlink == 1


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY])
def test_then_a_link(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", failing(number))
    place_file(source, destination, on_copied=failing(errno.EIO))
    assert destination.samefile(source)


def test_then_a_copy(source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", failing(errno.EXDEV))
    monkeypatch.setattr(os, "link", failing(errno.EXDEV))
    place_file(source, destination)
    assert destination.read_bytes() == CONTENT
    assert not destination.samefile(source)


@pytest.mark.parametrize("asked", [Placement.REFLINK, Placement.LINK])
def test_what_is_asked_for_and_cannot_be_is_refused(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, asked: Placement
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", failing(errno.EOPNOTSUPP))
    monkeypatch.setattr(os, "link", failing(errno.EXDEV))
    with pytest.raises(UnsupportedEnvironment, match=f"cannot have a .*{asked}") as raised:
        place_file(source, destination, asked)
    assert "--weights copy" in str(raised.value.hint)
    assert not destination.exists()


@pytest.mark.parametrize("asked", [Placement.REFLINK, Placement.AUTO])
def test_a_full_disk_is_no_lack_of_reflinks(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch, asked: Placement
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        place_file(source, destination, asked)
    assert not destination.exists()


def test_a_copy_is_counted_as_it_goes(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "_CHUNK_BYTES", 3000)
    told: list[int] = []
    place_file(source, destination, Placement.COPY, told.append)
    assert told == [3000, 3000, 1000]
    assert destination.read_bytes() == CONTENT
    assert not destination.samefile(source)


@pytest.mark.parametrize("asked", Placement)
def test_a_new_file_has_the_umask_s_mode_and_a_link_its_own(
    source: Path,
    destination: Path,
    umask: int,
    monkeypatch: pytest.MonkeyPatch,
    asked: Placement,
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", share_blocks)
    source.chmod(0o444)
    place_file(source, destination, asked)
    expected = 0o444 if asked is Placement.LINK else 0o666 & ~umask
    assert stat.S_IMODE(destination.stat().st_mode) == expected
    assert stat.S_IMODE(destination.parent.stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("asked", [Placement.AUTO, Placement.LINK, Placement.COPY])
def test_links_are_followed(source: Path, destination: Path, asked: Placement) -> None:
    link = source.with_name("link")
    link.symlink_to(source)
    place_file(link, destination, asked)
    assert not destination.is_symlink()
    assert destination.read_bytes() == CONTENT


def test_a_second_name_for_a_while(
    source: Path, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link_or_copy(source, destination)
    assert destination.samefile(source)
    destination.unlink()
    monkeypatch.setattr(os, "link", failing(errno.EXDEV))
    link_or_copy(source, destination)
    assert not destination.samefile(source)
    assert destination.read_bytes() == CONTENT


def test_a_true_reflink(source: Path, destination: Path) -> None:
    try:
        place_file(source, destination, Placement.REFLINK)
    except UnsupportedEnvironment as error:
        pytest.skip(str(error))
    assert destination.read_bytes() == CONTENT
    destination.write_bytes(b"other")
    assert source.read_bytes() == CONTENT


def names(toy: Toy) -> dict[str, int]:
    """How many names each file of the bundle has."""
    files = (path for path in toy.output.rglob("*") if path.is_file())
    return {path.name: path.stat().st_nlink for path in files}


class TestBundles:
    """What comes from a bundle that is there already, in the way that each was asked for."""

    def beside(self, toy: Toy, placement: Placement) -> Toy:
        other = Toy(toy.root, placement)
        other.output = toy.output.with_name("second")
        return other

    @pytest.mark.parametrize("first", [Placement.LINK, Placement.COPY])
    @pytest.mark.parametrize("second", [Placement.LINK, Placement.COPY])
    def test_neighbours_share_files_where_both_may(
        self, tmp_path: Path, first: Placement, second: Placement
    ) -> None:
        toy = Toy(tmp_path, first)
        toy.build()
        other = self.beside(toy, second)
        toy.runs()
        other.build()
        assert other.runs() == {}
        assert verify(other.output) == []
        shares = (toy.output / "graph/a.onnx").samefile(other.output / "graph/a.onnx")
        assert shares == (first is second is Placement.LINK)
        for each in (toy, other):
            if each.placement is Placement.COPY:
                assert set(names(each).values()) == {1}

    def test_asked_for_anew_it_comes_anew(self, tmp_path: Path) -> None:
        toy = Toy(tmp_path, Placement.LINK)
        toy.build()
        assert names(toy)["weights.bin"] == 2
        toy.placement = Placement.COPY
        manifest = toy.build()
        assert manifest.weights_asked is Placement.COPY
        assert set(names(toy).values()) == {1}
        assert verify(toy.output) == []

    def test_the_same_again_copies_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        toy = Toy(tmp_path, Placement.COPY)
        toy.build()
        monkeypatch.setattr(placement, "_copy", failing(errno.EIO))
        toy.build()
        toy.build(seed=2)
        assert set(names(toy).values()) == {1}

    def test_a_killed_build_is_not_resumed_in_another_way(self, tmp_path: Path) -> None:
        toy = Toy(tmp_path, Placement.LINK)

        def tick(name: str) -> None:
            if name == "middle of engine":
                die()

        assert exit_code(in_child(lambda: toy.build(tick=tick))) == -9
        toy.runs()
        toy.placement = Placement.COPY
        toy.build()
        assert toy.runs()["weights"] == 1
        assert set(names(toy).values()) == {1}

    def test_a_stage_is_told(self, toy: Toy) -> None:
        told = []

        def note(context: StageContext) -> None:
            told.append(context.placement)

        stage = Stage(name="note", description="note", key={}, outputs=(), run=note)
        toy.placement = Placement.COPY
        toy.build([stage])
        assert told == [Placement.COPY]


def test_a_lock_may_be_taken_by_whoever_may_write(toy: Toy) -> None:
    before = os.umask(0o002)
    try:
        with open_staging(toy.output):
            assert stat.S_IMODE((toy.building / "lock").stat().st_mode) == 0o664
    finally:
        os.umask(before)
