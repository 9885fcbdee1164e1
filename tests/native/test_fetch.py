# SPDX-License-Identifier: Apache-2.0
"""Fetching packages: what is left behind when it works, fails, or is done twice at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tc_export.errors import UnsupportedEnvironment
from tc_export.native import fetch as fetching

Pip = Callable[[Path], None]  # what pip does to its target folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and one package to fetch into it."""
    package = fetching.Package(
        meaning="a test",
        wheels=("wheel==1.2",),
        subfolder="inside",
        links=(("link", "inside"),),
        alternative="make it yourself",
    )
    folder = tmp_path / "cache"
    monkeypatch.setattr(fetching, "CACHE", folder)
    monkeypatch.setattr(fetching, "PACKAGES", {"thing": package})
    return folder


def pretend_pip(monkeypatch: pytest.MonkeyPatch, pip: Pip) -> list[list[str]]:
    """Let `pip` stand in for pip; returns the list of commands that it will have been given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        pip(Path(command[command.index("--target") + 1]))

    monkeypatch.setattr(fetching.subprocess, "run", run)
    return commands


def unpack(target: Path) -> None:
    (target / "inside").mkdir()
    (target / "inside" / "file").write_text("content")


def test_a_package_is_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = pretend_pip(monkeypatch, unpack)
    folder = fetching.fetch("thing")
    assert folder == cache / "thing-1.2" / "inside"
    assert (folder.parent / "link" / "file").read_text() == "content"
    assert fetching.fetch("thing") == folder
    assert len(commands) == 1
    assert commands[0][-1] == "wheel==1.2"
    assert {path.name for path in cache.iterdir()} == {".gitignore", "thing-1.2"}


def test_a_failure_leaves_nothing_and_says_why(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(target: Path) -> None:
        unpack(target)
        raise subprocess.CalledProcessError(1, "pip", stderr="warning\nERROR: no such package\n")

    pretend_pip(monkeypatch, fail)
    monkeypatch.setattr(sys, "argv", ["fetch", "thing"])
    assert fetching.main() == 4
    assert capsys.readouterr().err == (
        "thing could not be fetched from the package registry: ERROR: no such package\n"
    )
    with pytest.raises(UnsupportedEnvironment) as caught:
        fetching.fetch("thing")
    assert caught.value.hint == "make it yourself"
    assert [path.name for path in cache.iterdir()] == [".gitignore"]


def test_of_two_at_once_the_first_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def be_overtaken(target: Path) -> None:
        unpack(target)
        other = cache / "thing-1.2"
        other.mkdir()
        (other / "first").touch()

    pretend_pip(monkeypatch, be_overtaken)
    folder = fetching.fetch("thing")
    assert (folder.parent / "first").exists()
    assert {path.name for path in cache.iterdir()} == {".gitignore", "thing-1.2"}


def test_the_cache_may_lie_elsewhere(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend_pip(monkeypatch, unpack)
    other = tmp_path / "other"
    assert fetching.fetch("thing", cache=other) == other / "thing-1.2" / "inside"
    assert not cache.exists()


def test_an_unknown_name_is_refused_with_the_known_ones(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch", "other"])
    with pytest.raises(SystemExit) as stopped:
        fetching.main()
    assert stopped.value.code == 2
    assert "thing" in capsys.readouterr().err
