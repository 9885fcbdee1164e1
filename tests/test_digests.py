# SPDX-License-Identifier: Apache-2.0
"""What is remembered of large files from run to run, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tc_export import digests
from tc_export.digests import recall, remember


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tc-export"


def test_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "KEPT", 3)
    large = digests.LARGE_BYTES + 1
    for number in range(5):
        remember({f"1:{number}:{large}:0": "0"}, {str(number): "1"})
    assert list(recall().files) == [f"1:{number}:{large}:0" for number in (2, 3, 4)]
    assert list(recall().checkpoints) == ["2", "3", "4"]


def test_small_files_leave_nothing_behind(cache: Path) -> None:
    remember({f"1:1:{digests.LARGE_BYTES}:0": "0"})
    assert not cache.exists()


def test_nothing_but_the_file_itself_is_left(cache: Path) -> None:
    for number in range(3):
        remember(checkpoints={str(number): "1"})
    assert [path.name for path in cache.iterdir()] == ["digests.json"]


@pytest.mark.parametrize("variable", ["", "relative/folder"])
def test_the_cache_folder_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    remember(checkpoints={"a": "b"})
    assert recall().checkpoints == {"a": "b"}
    assert (tmp_path / "home" / ".cache" / "tc-export" / "digests.json").is_file()


def test_without_a_home_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    remember(checkpoints={"a": "b"})
    assert recall().checkpoints == {}
