# SPDX-License-Identifier: Apache-2.0
"""SIGTERM ends a command as Ctrl-C does: nothing is left running, and nothing half written.

By default it would end this process at once, and the compilers and builders that it has started
would go on. So it becomes the exception that Ctrl-C is, for all that cleans up after one; and every
process that we have started gets the signal that a terminal would have sent it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

TERMINATED = 143  # what a shell says of a program that SIGTERM has ended


class Terminated(KeyboardInterrupt):
    """SIGTERM came.

    A class of its own: after a plain KeyboardInterrupt, Python may end itself by SIGINT, whatever
    exit code it is given.
    """


@contextmanager
def termination_as_interrupt() -> Iterator[Callable[[], bool]]:
    """Raise `Terminated` at SIGTERM; what is yielded says whether it came.

    Only the main thread may handle signals; elsewhere nothing changes.
    """
    terminated = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        interrupt_descendants()
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield lambda: terminated
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupt_descendants() -> None:
    """Send every process that this one has started SIGINT, of which compilers and pip tidy up.

    Where this process was started to ignore it, so were they: they get SIGTERM.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM if ignored else signal.SIGINT)


def _descendants(pid: int) -> list[int]:
    """The children of a process, their children, and so on; parents first."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended in the meantime
            # After the name, in brackets that may hold anything: state, parent, …
            parent = int(stat.read_bytes().rpartition(b")")[2].split()[1])
            children[parent].append(int(stat.parent.name))
    found = children[pid]
    for child in found:  # it grows
        found += children[child]
    return found
