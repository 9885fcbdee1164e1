# SPDX-License-Identifier: Apache-2.0
"""Builds beside each other share what they have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tc_export.bundle import verify

from .toy import NAMES, Toy


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


@pytest.mark.parametrize("name", ["manifest.json", "graph"])
def test_what_only_looks_like_a_bundle_is_left_alone(toy: Toy, second: Toy, name: str) -> None:
    path: Path = toy.output / name
    path.rename(path.with_name("away"))
    if name == "manifest.json":
        path.write_text("{}")
    second.build()
    assert set(second.runs()) == (set(NAMES) if name == "manifest.json" else {"graph"})
