# SPDX-License-Identifier: Apache-2.0
"""The keys and values of one session, in buffers of its own on the engine's device.

An engine may have many caches, and runs with one at a time; the others keep what they hold. Rows
at and past `length` may hold anything: no token sees a row that no call has written, so going back
is forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tc_export.errors import UsageError

if TYPE_CHECKING:
    from tc_export.engine.interface import Buffer, Engine


class KvCache:
    """Made by `Engine.new_cache`, and handed to `Engine.run` with each call.

    Attributes:
        engine: whose it is.
        buffers: [batch, key/value heads, C, head size] of each layer and part, by `0.key`.
        rows: most tokens that it takes; an engine that was built for one size may have more, C.
    """

    def __init__(
        self, engine: Engine, buffers: Mapping[str, Buffer], rows: int, length: int = 0
    ) -> None:
        """Take the buffers as they are, with `length` rows in use."""
        self.engine = engine
        self.buffers = dict(buffers)
        self.rows = rows
        self._length = length

    @property
    def length(self) -> int:
        """Rows in use: tokens of the session so far."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def extend(self, rows: int) -> None:
        """Count rows that a call has written.

        Raises:
            UsageError: there are no more rows.
        """
        self.check_room(rows)
        self._length += rows

    def check_room(self, rows: int) -> None:
        """See that so many more rows are free.

        Raises:
            UsageError: they are not.
        """
        if self._length + rows > self.rows:
            raise UsageError(
                f"the sequence needs {self._length + rows} tokens and the cache holds {self.rows}",
                hint="use fewer frames or a shorter question, or build with a larger --max-length",
            )

    def rewind(self, length: int) -> None:
        """Forget all rows from `length` on; nothing is copied or cleared.

        Raises:
            UsageError: there were never so many.
        """
        if not 0 <= length <= self._length:
            raise UsageError(f"a cache of {self._length} tokens cannot go back to {length}")
        self._length = length

    def fork(self) -> KvCache:
        """A cache of its own with the same contents, copied on the device."""
        buffers = {name: buffer.copy() for name, buffer in self.buffers.items()}
        return KvCache(self.engine, buffers, self.rows, self._length)
