# SPDX-License-Identifier: Apache-2.0
"""Looking at a published bundle: is every file what the manifest says, and what is it all?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tc_export.bundle.files import is_regular_file, walk_files
from tc_export.bundle.manifest import FORMAT_VERSION, MANIFEST, FileRecord, read_manifest
from tc_export.digests import Digests, remember
from tc_export.errors import BundleError


class Damage(StrEnum):
    """What can be wrong with a file."""

    MISSING = "missing"
    ADDED = "added"
    TRUNCATED = "truncated"
    CHANGED = "changed"


@dataclass(frozen=True)
class Problem:
    """One file that is not what the manifest says."""

    path: str
    damage: Damage
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.damage} ({self.detail})"


def locate(bundle: Path, path: str) -> Path:
    """The place of a file that the manifest lists, for whoever opens it.

    Raises:
        BundleError: the path leaves the bundle, by itself or through a link.
    """
    place = bundle / path
    try:
        inside = place.resolve().is_relative_to(bundle.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that cannot be
        inside = False
    if not inside:
        raise BundleError(
            f"{path} leads out of the bundle {bundle}",
            hint="do not use this bundle: get it again from where it was built",
        )
    return place


def verify(
    bundle: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Problem]:
    """Compare every file with the manifest, and name each that differs, in order of path.

    `on_progress` gets how many bytes are done, and how many there are; a file that needs no reading
    is done at once.

    Raises:
        BundleError: the manifest itself is missing, damaged, of another version, or lists a path
            that leaves the bundle.
    """
    files = read_manifest(bundle).files
    digests = Digests()
    problems = compare(bundle, files, digests, on_progress)
    remember(digests.known)
    try:
        found = list(walk_files(bundle))
    except OSError as error:
        raise BundleError(f"{error.filename} cannot be read: {error.strerror}") from error
    problems += [
        Problem(_printable(path), Damage.ADDED, "not in the manifest")
        for path in found
        if path not in files and path != MANIFEST
    ]
    return sorted(problems, key=lambda problem: problem.path)


def compare(
    bundle: Path,
    files: Mapping[str, FileRecord],
    digests: Digests,
    on_progress: Callable[[int, int], None],
) -> list[Problem]:
    """Compare the files that a manifest lists with the bundle's, and name each that differs.

    Only plain files are opened: a pipe could be waited for without end.

    Raises:
        BundleError: a path leaves the bundle.
    """
    bytes_read = _BytesRead(sum(file.size_bytes for file in files.values()), on_progress)
    problems = []
    for path, file in files.items():
        problems.append(_check(bundle, path, file, digests, bytes_read.add))
        bytes_read.finish_file(file.size_bytes)
    return [problem for problem in problems if problem]


class _BytesRead:
    """Adds up what was read of each file, and tells the caller."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None]) -> None:
        self._total = total
        self._on_progress = on_progress
        self._files = 0  # of those that are done
        self._file = 0  # of the one that is being read

    def add(self, size_bytes: int) -> None:
        self._file += size_bytes
        self._on_progress(self._files + self._file, self._total)

    def finish_file(self, size_bytes: int) -> None:
        self._files, self._file = self._files + size_bytes, 0
        self._on_progress(self._files, self._total)


def _check(
    bundle: Path,
    path: str,
    expected: FileRecord,
    digests: Digests,
    on_read: Callable[[int], None],
) -> Problem | None:
    place = locate(bundle, path)
    if not os.path.lexists(place):
        return Problem(path, Damage.MISSING, f"{expected.size_bytes:,} bytes expected")
    if not is_regular_file(place):
        return Problem(path, Damage.CHANGED, "no longer a plain file")
    if place.resolve() != bundle.resolve() / path:
        return Problem(path, Damage.CHANGED, "in a folder that is a symbolic link")
    size_bytes = place.stat().st_size
    if size_bytes != expected.size_bytes:
        damage = Damage.TRUNCATED if size_bytes < expected.size_bytes else Damage.CHANGED
        detail = f"{size_bytes:,} bytes found, {expected.size_bytes:,} expected"
        return Problem(path, damage, detail)
    try:
        sha256 = digests.sha256(place, on_read)
    except OSError as error:
        return Problem(path, Damage.CHANGED, f"cannot be read: {error.strerror}")
    if sha256 != expected.sha256:
        detail = f"sha256 {sha256[:12]}… found, {expected.sha256[:12]}… expected"
        return Problem(path, Damage.CHANGED, detail)
    return None


def _printable(path: str) -> str:
    """A file name from the disk may hold bytes that are no text."""
    return os.fsencode(path).decode(errors="backslashreplace")


def inspect(bundle: Path) -> dict[str, Any]:
    """What a person wants to know of a bundle, ready for JSON. Reads the manifest only.

    Raises:
        BundleError: as `read_manifest`.
    """
    manifest = read_manifest(bundle)
    shown = manifest.model_dump(mode="json", exclude={"stages"})
    stages = [
        {
            "name": name,
            "seconds": record.seconds,
            "files": len(record.files),
            "size_bytes": sum(file.size_bytes for file in record.files.values()),
        }
        for name, record in manifest.stages.items()
    ]
    return {
        "bundle": str(bundle),
        "format_version": FORMAT_VERSION,
        **shown,
        "stages": stages,
        "files": {path: file.size_bytes for path, file in manifest.files.items()},
        "size_bytes": sum(file.size_bytes for file in manifest.files.values()),
        "seconds": sum(record.seconds for record in manifest.stages.values()),
    }
