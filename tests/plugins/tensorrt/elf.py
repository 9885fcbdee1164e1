# SPDX-License-Identifier: Apache-2.0
"""What a shared library says of itself, read with binutils (which read any architecture)."""

from __future__ import annotations

import re
from pathlib import Path

from tests.plugins.native import run


def needed(library: Path) -> set[str]:
    """The libraries that it asks the loader for."""
    return set(re.findall(r"NEEDED.*\[(.+?)\]", run("readelf", "--dynamic", "--wide", library)))


def machine(library: Path) -> str:
    """The processor that it is for."""
    found = re.search(r"Machine:\s+(\S+)", run("readelf", "--file-header", library))
    assert found
    return found[1]


def functions(library: Path) -> set[str]:
    """The C functions that it exports; C++'s shared templates are not counted."""
    table = run("readelf", "--dyn-syms", "--wide", library)
    symbols = re.findall(r"FUNC\s+GLOBAL\s+DEFAULT\s+\d+ (\S+)$", table, re.MULTILINE)
    return {symbol for symbol in symbols if not symbol.startswith("_")}


def newest_version(library: Path, family: str) -> tuple[int, ...]:
    """The newest version of a family of symbols, such as GLIBC, that it asks for."""
    versions = re.findall(rf"{family}_([0-9.]+)", run("readelf", "--version-info", library))
    return max(tuple(map(int, version.split("."))) for version in versions)
