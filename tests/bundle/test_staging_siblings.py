# SPDX-License-Identifier: Apache-2.0
"""Builds beside each other share what they have in common."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tc_export.bundle import Placement, staging, verify
from tests.runner.toy import NAMES, Toy


@pytest.fixture
def second(toy: Toy) -> Toy:
    """A build of the same checkpoint into the folder beside a first one's, which has ended."""
    toy.build()
    toy.runs()
    other = Toy(toy.root)
    other.output = toy.output.with_name("second")
    return other


def test_nothing_is_made_twice(toy: Toy, second: Toy) -> None:
    second.build()
    assert second.runs() == {}
    assert second.hashes() == toy.hashes()
    assert (second.output / "weights.bin").samefile(toy.output / "weights.bin")
    assert verify(second.output) == []


def test_what_differs_is_made(toy: Toy, second: Toy) -> None:
    second.build(seed=2)
    assert second.runs() == {"graph": 1, "engine": 1, "report": 1}
    assert second.hashes() != toy.hashes()
    assert verify(toy.output) == []


def test_a_damaged_sibling_is_not_taken(toy: Toy, second: Toy) -> None:
    (toy.output / "graph" / "a.onnx").write_text("changed")
    second.build()
    assert second.runs() == {"graph": 1}
    assert (second.output / "graph" / "a.onnx").read_text() == "a 1"


def test_of_several_siblings_any_whole_one_will_do(toy: Toy, second: Toy) -> None:
    second.build()
    (toy.output / "graph" / "a.onnx").unlink()  # of the two names of one file
    third = Toy(toy.root)
    third.output = toy.output.with_name("third")
    third.build()
    assert third.runs() == {}
    assert third.hashes() == second.hashes()


@pytest.mark.parametrize("name", ["manifest.json", "graph"])
def test_what_only_looks_like_a_bundle_is_left_alone(toy: Toy, second: Toy, name: str) -> None:
    path: Path = toy.output / name
    path.rename(path.with_name("away"))
    if name == "manifest.json":
        path.write_text("{}")
    second.build()
    assert set(second.runs()) == (set(NAMES) if name == "manifest.json" else {"graph"})


@pytest.mark.parametrize("unreadable", ["lost+found/manifest.json", "bundle/graph/a.onnx"])
def test_what_may_not_be_read_is_left_alone(
    toy: Toy, second: Toy, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    """Simulated, since nothing is unreadable to root."""
    (toy.output.parent / "lost+found").mkdir()
    forbidden = toy.output.parent / unreadable
    stat, opened = os.stat, Path.open

    def refuse(path: object) -> None:
        if path == forbidden:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def stat_or_refuse(path: Any, **options: Any) -> os.stat_result:
        if forbidden.name == "manifest.json":
            refuse(path)
        return stat(path, **options)

    def open_or_refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        refuse(path)
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat_or_refuse)
    monkeypatch.setattr(Path, "open", open_or_refuse)
    second.build()
    assert second.runs() == ({"graph": 1} if "graph" in unreadable else {})
    assert verify(second.output) == []


@pytest.mark.parametrize("fate", ["replaced", "removed"])
def test_a_sibling_may_change_while_it_is_taken_from(
    toy: Toy, second: Toy, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    """Its hashes held, and then another build came in between."""
    place = staging.place_file

    def late(source: Path, destination: Path, placement: Placement) -> None:
        monkeypatch.setattr(staging, "place_file", place)
        if fate == "replaced":
            toy.build(seed=2)
            toy.runs()
        else:
            shutil.rmtree(toy.output)
        place(source, destination, placement)

    monkeypatch.setattr(staging, "place_file", late)
    second.build()
    assert second.runs()["graph"] == 1
    assert (second.output / "graph" / "a.onnx").read_text() == "a 1"
    assert verify(second.output) == []
