# SPDX-License-Identifier: Apache-2.0
"""Data goes one way: a later part may import an earlier one, never the reverse."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tc_export"

ORDER = [
    {"__init__", "elf", "errors", "options"},
    {"config"},
    {"targets"},
    {"plugins"},
    {"ops", "tasks"},
    {"model"},
    {"checkpoint"},
    {"graph"},
    {"engine"},
    {"builder"},
    {"plan", "target_table"},
    {"doctor"},
    {"parity"},
    {"bundle"},
    {"stages", "finish"},
    {"runtime"},
    {"training"},
    {"parity_check"},
    {"build_stages", "task_check"},
    {"pipeline"},
    {"build_commands", "device_commands"},
    {"cli"},
    {"__main__"},
]
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(file: Path) -> set[str]:
    """The parts of the package that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: imports are absolute"
            if node.module == "tc_export":
                names |= {f"tc_export.{alias.name}" for alias in node.names}
            else:
                names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("tc_export.")} & RANK.keys()


def test_every_part_has_its_place() -> None:
    parts = {part_of(file) for file in PACKAGE.rglob("*.py")}
    assert parts <= RANK.keys(), f"say where these stand: {parts - RANK.keys()}"


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_imports_go_one_way(file: Path) -> None:
    own = part_of(file)
    upwards = {part for part in imported_parts(file) if RANK[part] > RANK[own]}
    sideways = {part for part in imported_parts(file) if RANK[part] == RANK[own]} - {own}
    assert not upwards, f"{file} imports later parts: {upwards}"
    assert not sideways, f"{file} imports a part beside it: {sideways}"


def test_a_devices_runtime_needs_no_exporter() -> None:
    """What answers questions does not import the tracer or the builders."""
    for folder in ("runtime", "bundle", "engine", "builder"):
        for file in (PACKAGE / folder).rglob("*.py"):
            assert not imported_parts(file) & {"graph", "parity", "pipeline", "training"}, file
