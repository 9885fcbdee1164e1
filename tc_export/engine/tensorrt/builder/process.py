# SPDX-License-Identifier: Apache-2.0
"""Run a part of the work in a process of its own, the same way each time.

A library that aborts, or keeps its memory, then ends that process and not ours. It has a process
group of its own: an interrupt reaches us alone, and we end the whole group.

Two runs on the same input are alike to the address: what a library orders by addresses, as
TensorRT does the lengths that depend on a dynamic axis, then comes out in the same order. So a
worker gets a few variables of the environment only, its files as open descriptors rather than as
paths, and memory that is not at random addresses.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_LAST_CHARACTERS = 4_000
_FIRST_DESCRIPTOR = 200  # beyond what we have open: the same number each time
_ENVIRONMENT = re.compile(r"PATH|HOME|TMPDIR|LANG|(CUDA|LC_|LD_|NV|PYTHON).*")
_ADDR_NO_RANDOMIZE, _ASK = 0x0040000, 0xFFFFFFFF  # sys/personality.h


@dataclass(frozen=True)
class Ended:
    """How a worker ended: its exit code (negative: the signal's number) and its last words."""

    returncode: int
    said: str

    @property
    def signal_name(self) -> str | None:
        """The signal that ended it, such as SIGABRT."""
        return signal.Signals(-self.returncode).name if self.returncode < 0 else None


@contextlib.contextmanager
def descriptor(path: Path, flags: int) -> Iterator[int]:
    """Open a file, or a folder, for a worker."""
    opened = os.open(path, flags, 0o666)
    try:
        handed = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, _FIRST_DESCRIPTOR)
    finally:
        os.close(opened)
    try:
        yield handed
    finally:
        os.close(handed)


def path_of(descriptor: int) -> str:
    """A path by which the process that has it finds an open file."""
    return f"/proc/self/fd/{descriptor}"


def run_worker(
    module: str, task: str, on_line: Callable[[str], None], descriptors: Sequence[int] = ()
) -> Ended:
    """Run `python -m module` to its end.

    Args:
        module: what to run.
        task: goes to its standard input.
        on_line: called with each line of its standard output, as it comes. Whatever it raises, an
            interrupt too, ends the worker at once.
        descriptors: open files that it gets too.
    """
    # -P: a file of the current folder must not stand in for a library.
    command = [sys.executable, "-P", "-m", module]
    environment = {key: value for key, value in os.environ.items() if _ENVIRONMENT.fullmatch(key)}
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
            pass_fds=descriptors,
            start_new_session=True,
        ) as worker,
    ):
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            with contextlib.suppress(BrokenPipeError), worker.stdin:  # it may be gone already
                worker.stdin.write(task)
            for line in worker.stdout:
                on_line(line)
            worker.wait()
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
        size = said.seek(0, os.SEEK_END)
        said.seek(max(0, size - _LAST_CHARACTERS))
        return Ended(worker.returncode, said.read().decode(errors="replace"))


def fix_addresses() -> None:
    """Start this process again, with memory at the same addresses each time.

    Where the system does not allow that, as some containers, it goes on as it is.
    """
    libc = ctypes.CDLL(None)
    now = libc.personality(_ASK)
    if not now & _ADDR_NO_RANDOMIZE and libc.personality(now | _ADDR_NO_RANDOMIZE) != -1:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
