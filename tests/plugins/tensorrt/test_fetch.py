# SPDX-License-Identifier: Apache-2.0
"""Fetching packages: what is left behind when it works, fails, or is done twice at once."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.plugins.native import PLUGINS

Pip = Callable[[Path], None]  # what pip does to its target folder


@pytest.fixture
def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with a cache of its own and one package."""
    spec = importlib.util.spec_from_file_location("fetch", PLUGINS / "tensorrt" / "fetch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fetch", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    package = module.Package(
        meaning="a test", wheels=("wheel==1.2",), subfolder="inside", links=(("link", "inside"),)
    )
    monkeypatch.setattr(module, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(module, "PACKAGES", {"thing": package})
    return module


def pretend_pip(module: ModuleType, monkeypatch: pytest.MonkeyPatch, pip: Pip) -> list[list[str]]:
    """Let `pip` stand in for pip; returns the list of commands that it will have been given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        pip(Path(command[command.index("--target") + 1]))

    monkeypatch.setattr(module.subprocess, "run", run)
    return commands


def unpack(target: Path) -> None:
    (target / "inside").mkdir()
    (target / "inside" / "file").write_text("content")


def test_a_package_is_fetched_once(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = pretend_pip(fetch, monkeypatch, unpack)
    folder = fetch.fetch("thing")
    assert folder == fetch.CACHE / "thing-1.2" / "inside"
    assert (folder.parent / "link" / "file").read_text() == "content"
    assert fetch.fetch("thing") == folder
    assert len(commands) == 1
    assert commands[0][-1] == "wheel==1.2"
    assert {path.name for path in fetch.CACHE.iterdir()} == {".gitignore", "thing-1.2"}


def test_a_failure_leaves_nothing_and_says_why(
    fetch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(target: Path) -> None:
        unpack(target)
        raise subprocess.CalledProcessError(1, "pip", stderr="warning\nERROR: no such package\n")

    pretend_pip(fetch, monkeypatch, fail)
    monkeypatch.setattr(sys, "argv", ["fetch.py", "thing"])
    assert fetch.main() == 4
    assert capsys.readouterr().err == "thing could not be fetched: ERROR: no such package\n"
    assert [path.name for path in fetch.CACHE.iterdir()] == [".gitignore"]


def test_of_two_at_once_the_first_stays(fetch: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def be_overtaken(target: Path) -> None:
        unpack(target)
        other = fetch.CACHE / "thing-1.2"
        other.mkdir()
        (other / "first").touch()

    pretend_pip(fetch, monkeypatch, be_overtaken)
    folder = fetch.fetch("thing")
    assert (folder.parent / "first").exists()
    assert {path.name for path in fetch.CACHE.iterdir()} == {".gitignore", "thing-1.2"}


def test_an_unknown_name_is_refused_with_the_known_ones(
    fetch: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fetch.py", "other"])
    with pytest.raises(SystemExit) as stopped:
        fetch.main()
    assert stopped.value.code == 2
    assert "thing" in capsys.readouterr().err
