# SPDX-License-Identifier: Apache-2.0
"""Data goes one way, through six layers: a later one may import an earlier one, never the reverse.

Within a layer the rooms may use each other as long as there is no circle. `docs/architecture.md`
says what stands in each.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.repository import REPOSITORY

PACKAGE = REPOSITORY / "tc_export"
LAYERS = {
    "foundation": {
        *(
            "errors",
            "missing_packages",
            "config",
            "dtypes",
            "digests",
            "contracts",
            "targets",
            *("recipes", "shipped_files"),
        ),
    },
    "model": {"ops", "model", "checkpoint", "tasks"},
    "make": {"graph", "native"},
    "hold": {"bundle", "engine"},
    "use": {
        "runtime",
        "parity",
        "golden",
        "device_build",
        "plan",
        "doctor",
        "demo_model",
        "quantize",
    },
    "drive": {"runner", "stages", "pipeline", "api", "cli", "__main__"},
}
RANK = {room: rank for rank, rooms in enumerate(LAYERS.values()) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(source: str) -> set[str]:
    """The rooms of the package that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "tc_export":
                names |= {f"tc_export.{alias.name}" for alias in node.names}
            else:
                names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("tc_export.")} & RANK.keys()


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The rooms of one circle, or none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_is_in_a_layer() -> None:
    rooms = {room_of(file) for file in FILES} - {"__init__"}
    assert rooms == RANK.keys(), f"say in which layer these stand: {rooms ^ RANK.keys()}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_import_goes_to_a_later_layer(file: Path) -> None:
    if file == PACKAGE / "__init__.py":
        return  # the public interface: it names what stands in later layers, and loads it lazily
    later = {room for room in imported_rooms(file.read_text()) if RANK[room] > RANK[room_of(file)]}
    assert not later, f"{file} imports from a later layer: {later}"


def test_rooms_make_no_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for file in FILES:
        room = room_of(file)
        if room != "__init__":
            arrows.setdefault(room, set()).update(imported_rooms(file.read_text()) - {room})
    assert not circle(arrows)


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}})


def test_an_import_inside_a_function_counts() -> None:
    source = "def f():\n    from tc_export.engine.session import x\n    import tc_export.plan.host"
    assert imported_rooms(source) == {"engine", "plan"}
