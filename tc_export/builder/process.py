# SPDX-License-Identifier: Apache-2.0
"""Run a part of the work in a process of its own.

A library that aborts, or keeps its memory, then ends that process and not ours. It has a process
group of its own: an interrupt reaches us alone, and we end the whole group.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

_LAST_CHARACTERS = 4_000


@dataclass(frozen=True)
class Ended:
    """How a worker ended: its exit code (negative: the signal's number) and its last words."""

    returncode: int
    said: str

    @property
    def signal_name(self) -> str | None:
        """The signal that ended it, such as SIGABRT."""
        return signal.Signals(-self.returncode).name if self.returncode < 0 else None


def run_worker(module: str, task: str, on_line: Callable[[str], None]) -> Ended:
    """Run `python -m module` to its end.

    Args:
        module: what to run.
        task: goes to its standard input.
        on_line: called with each line of its standard output, as it comes. Whatever it raises, an
            interrupt too, ends the worker at once.
    """
    # -P: a file of the current folder must not stand in for a library.
    command = [sys.executable, "-P", "-m", module]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
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
