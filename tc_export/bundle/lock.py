# SPDX-License-Identifier: Apache-2.0
"""The lock of a folder that one build works in. A dead process holds nothing."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from tc_export.errors import UnsupportedEnvironment, UsageError

LOCK = "lock"


@contextmanager
def locked(folder: Path, *, beside: Collection[str]) -> Iterator[None]:
    """Make `folder` and hold its lock, the file `lock` in it, as long as the block runs.

    `beside` are the other names that the folder may have in it.

    Raises:
        UnsupportedEnvironment: another process holds it; says which.
        UsageError: there is something else of the folder's name.
    """
    descriptor = _acquire(folder, beside)
    try:
        yield
    finally:
        os.close(descriptor)


def _acquire(folder: Path, beside: Collection[str]) -> int:
    lock = folder / LOCK
    while True:
        _refuse_foreign(folder, beside)
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue  # another build ended just now and took the folder with it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.exists() and os.path.samestat(os.fstat(descriptor), lock.stat()):
                holder = f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}"
                os.ftruncate(descriptor, 0)
                os.write(descriptor, holder.encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UnsupportedEnvironment(
                f"another build is writing the same bundle: {holder} holds {lock}",
                hint="wait until it ends, stop it, or name another output folder",
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the lock of a build that ended: its file is gone


def _refuse_foreign(folder: Path, beside: Collection[str]) -> None:
    """Refuse a folder of the staging's name that is not a staging folder."""
    if not os.path.lexists(folder):
        return
    is_folder = folder.is_dir() and not folder.is_symlink()
    foreign = (
        sorted({path.name for path in folder.iterdir()} - {LOCK, *beside}) if is_folder else []
    )
    if foreign or not is_folder:
        raise UsageError(
            f"the build needs {folder}, but "
            + (f"it holds {', '.join(foreign[:5])}" if foreign else "that is no folder"),
            hint="move it away, or name another output folder",
        )
