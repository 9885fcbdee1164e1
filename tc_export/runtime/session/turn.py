# SPDX-License-Identifier: Apache-2.0
"""Who uses a session now: one caller at a time; the others are told so, and do not wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tc_export.errors import UsageError


class Turn:
    """Taken for one thing at a time.

    Not a lock that waits: an answer that is read piece by piece has its turn in between, and the
    one who reads it would wait for itself.
    """

    def __init__(self) -> None:
        """Nobody has it."""
        self._lock = threading.Lock()
        self._what = ""

    @contextmanager
    def take(self, what: str) -> Iterator[None]:
        """Have the turn for the `with` block; `what` is said to who asks for it meanwhile.

        Raises:
            UsageError: somebody has it.
        """
        if not self._lock.acquire(blocking=False):
            raise UsageError(
                f"the session is busy: {self._what}",
                hint="read an answer to its end, or close it; from several threads, take turns",
            )
        self._what = what
        try:
            yield
        finally:
            self._lock.release()
