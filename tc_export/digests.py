# SPDX-License-Identifier: Apache-2.0
"""SHA-256 of files, each read once as long as nobody changes it.

A file is known by its stamp: device, inode, size and modification time. So a hard link needs no
second reading, and a copy, another file under the same name or a changed file has to be read.

What was found of large files is kept from run to run, in `tc-export/digests.json` of the user's
cache folder ($XDG_CACHE_HOME, or ~/.cache): opening a bundle of 14 GB then takes no longer than
opening a small one. It is kept there and not in the bundle, since a bundle may be read-only or
another user's, and since a stamp says nothing on another machine. Where the folder cannot be
written, large files are read each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from pydantic import Field, ValidationError

from tc_export.config import Config

LARGE_BYTES = 64 << 20
"""Digests of what is larger are remembered; the rest is read in less than a tenth of a second."""

KEPT = 1000
"""Digests of each kind that are remembered: those that were found last."""

# A file changed twice within one tick of the file system's clock keeps its modification time, so
# a hash is only remembered for a file that has been left alone for longer than any tick.
_CLOCK_TICK_NS = 50_000_000

_CHUNK_BYTES = 16 << 20  # of a file that is read whole: some tens of milliseconds


class Remembered(Config):
    """What earlier runs have found."""

    files: dict[str, str] = Field(default_factory=dict)
    """Digests of large files, by their stamps."""
    checkpoints: dict[str, str] = Field(default_factory=dict)
    """Digests of large checkpoints, by what they were computed from."""


class Digests:
    """Digests of files, computed as they are asked for.

    Attributes:
        known: those that were computed here, by the files' stamps.
    """

    def __init__(
        self, known: Mapping[str, str] | None = None, earlier: Mapping[str, str] | None = None
    ) -> None:
        """Begin with those that are `known`, and believe those of `earlier` runs."""
        self.known = dict(known or {})
        self._earlier = dict(earlier or {})

    def sha256(self, path: Path, on_read: Callable[[int], None] = lambda size: None) -> str:
        """The hash of the file's content, in hexadecimal digits; `on_read` gets bytes read."""
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            found = self.known.get(stamp(before)) or self._earlier.get(stamp(before))
            if found:
                return found
            digest = _sha256(file, on_read)
            if is_settled(before) and stamp(os.fstat(file.fileno())) == stamp(before):
                self.known[stamp(before)] = digest
        return digest


def stamp(status: os.stat_result) -> str:
    """What a file is known by, as long as nobody changes it."""
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def is_settled(status: os.stat_result) -> bool:
    """False where a file was changed so recently that another change might leave no trace."""
    return time.time_ns() - status.st_mtime_ns > _CLOCK_TICK_NS


def recall() -> Remembered:
    """What earlier runs have found; nothing where that cannot be read."""
    try:
        return Remembered.model_validate_json(_memory().read_bytes(), strict=True)
    except (OSError, RuntimeError, ValidationError):
        return Remembered()


def remember(
    files: Mapping[str, str] | None = None, checkpoints: Mapping[str, str] | None = None
) -> None:
    """Keep digests for later runs, those of small files left out, as far as there is a place."""
    large = {key: digest for key, digest in (files or {}).items() if _size(key) > LARGE_BYTES}
    before = recall()
    after = Remembered(
        files=_newest(before.files | large),
        checkpoints=_newest(before.checkpoints | dict(checkpoints or {})),
    )
    if after != before:
        with contextlib.suppress(OSError, RuntimeError):
            _replace(_memory(), after.model_dump(mode="json"))


def _memory() -> Path:
    """Where digests are kept. A RuntimeError: the user has no home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    folder = Path(cache) if cache and Path(cache).is_absolute() else Path.home() / ".cache"
    return folder / "tc-export" / "digests.json"


def _replace(path: Path, document: object) -> None:
    """Write a file in one step, as any number of processes may at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        try:
            json.dump(document, file, indent=2)
            file.close()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _newest(digests: Mapping[str, str]) -> dict[str, str]:
    return dict(list(digests.items())[-KEPT:])


def _size(key: str) -> int:
    return int(key.split(":")[2])


def _sha256(file: BinaryIO, on_read: Callable[[int], None]) -> str:
    sha = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        sha.update(chunk)
        on_read(len(chunk))
    return sha.hexdigest()
