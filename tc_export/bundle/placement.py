# SPDX-License-Identifier: Apache-2.0
"""How a large file comes into a bundle: with its blocks shared, by a second name, or as a copy.

A reflink is a file of its own that shares its blocks with another until one of the two is written
to; Btrfs, XFS and a few more have them. A hard link is a second name of the same file: it takes no
room and is in most file systems, but who writes to one name changes both, and ONNX's own tools
refuse to read weights that have two.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from tc_export.errors import UnsupportedEnvironment

OnCopied = Callable[[int], None]
"""Called with a number of bytes that were copied."""

_FICLONE = 0x40049409
_CHUNK_BYTES = 16 << 20

# What the system says where a reflink cannot be: no such thing here, or another file system.
_NO_REFLINK = (
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.ENOSYS,
    errno.EXDEV,
    errno.EINVAL,
    errno.EPERM,
)
# The same for a hard link; also too many of them, or a file of another user
# (`fs.protected_hardlinks`).
_NO_LINK = (
    errno.EXDEV,
    errno.EPERM,
    errno.EACCES,
    errno.EMLINK,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
)


class Placement(StrEnum):
    """How a large file comes into a bundle."""

    AUTO = "auto"  # a reflink where that can be, else a hard link, else a copy
    REFLINK = "reflink"
    LINK = "link"
    COPY = "copy"

    @property
    def keeps_apart(self) -> bool:
        """True where no file of the bundle may be the same as one outside of it."""
        return self in (Placement.REFLINK, Placement.COPY)


def place_file(
    source: Path,
    destination: Path,
    placement: Placement = Placement.AUTO,
    on_copied: OnCopied = lambda size: None,
) -> None:
    """Bring `source` to `destination`, where nothing is yet; the folders above it are made.

    Links are followed first: the Hugging Face cache is made of them, and a bundle has none. A hard
    link keeps the mode of the file; any other new file has the one that the umask gives.

    Raises:
        UnsupportedEnvironment: a reflink or a link is asked for, and cannot be.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve(strict=True)
    match placement:
        case Placement.AUTO:
            if _reflink(source, destination) and _link(source, destination):
                _copy(source, destination, on_copied)
        case Placement.REFLINK:
            if error := _reflink(source, destination):
                _refuse(source, destination, "reflink", error)
        case Placement.LINK:
            if error := _link(source, destination):
                _refuse(source, destination, "hard link", error)
        case Placement.COPY:
            _copy(source, destination, on_copied)


def link_or_copy(source: Path, destination: Path) -> None:
    """Give `source` a second name, for a while at least, or copy it where that cannot be."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve(strict=True)
    if _link(source, destination):
        _copy(source, destination, lambda size: None)


def _reflink(source: Path, destination: Path) -> OSError | None:
    """Share the blocks of `source`; return why it cannot be."""
    with source.open("rb") as original:
        try:
            with destination.open("xb") as made:
                fcntl.ioctl(made.fileno(), _FICLONE, original.fileno())
        except OSError as error:
            destination.unlink(missing_ok=True)
            if error.errno in _NO_REFLINK:
                return error
            raise
    return None


def _link(source: Path, destination: Path) -> OSError | None:
    """Give `source` a second name; return why it cannot be."""
    try:
        os.link(source, destination)
    except OSError as error:
        if error.errno in _NO_LINK:
            return error
        raise
    return None


def _copy(source: Path, destination: Path, on_copied: OnCopied) -> None:
    with source.open("rb") as original, destination.open("xb") as made:
        while chunk := original.read(_CHUNK_BYTES):
            made.write(chunk)
            on_copied(len(chunk))


def _refuse(source: Path, destination: Path, what: str, error: OSError) -> NoReturn:
    raise UnsupportedEnvironment(
        f"{source} cannot have a {what} in {destination.parent}: {error.strerror}",
        hint="use --weights auto or --weights copy, or name an output on a file system where it "
        "can be",
    ) from error
