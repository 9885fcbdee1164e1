# SPDX-License-Identifier: Apache-2.0
"""The keys and values of a session, or of a batch, in buffers of its own on the engine's device.

An engine may have many caches, and runs with one at a time; the others keep what they hold. Rows
at and past `length` may hold anything: no token sees a row that no call has written, so going back
is forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tc_export.contracts.graph_io import PAST
from tc_export.errors import UsageError

if TYPE_CHECKING:
    from tc_export.engine.interface import Buffer, Engine


class KvCache:
    """Made by `Engine.new_cache`, and handed to `Engine.run` with each call.

    Attributes:
        engine: whose it is.
        buffers: [batch, key/value heads, C, head size] of each layer and part, by `0.key`; of a
            cache in eight bits also the scales [batch, key/value heads, C], by `0.key_scale`.
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
        self.check_holds(self._length + rows)

    def check_holds(self, length: int) -> None:
        """See that a sequence of so many tokens fits.

        Raises:
            UsageError: it does not.
        """
        if length > self.rows:
            raise UsageError(
                f"the sequence needs {length} tokens and the cache holds {self.rows}",
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

    def write(self, name: str, values: np.ndarray) -> None:
        """Put `values` [batch, heads, rows, …] into the first rows of one buffer.

        `name` is as in `buffers`. The rows behind them become zero; `length` stays what it is.
        """
        buffer = self.buffers[name]
        whole = np.zeros(buffer.shape, self.engine.inputs[f"{PAST}.{name}"].dtype)
        whole[:, :, : values.shape[2]] = values
        buffer.write(whole)

    def fork(self) -> KvCache:
        """A cache of its own with the same contents, copied on the device."""
        buffers = {name: buffer.copy() for name, buffer in self.buffers.items()}
        return KvCache(self.engine, buffers, self.rows, self._length)

    def repeat(self, count: int) -> KvCache:
        """A cache of `count` sequences that all begin as this one, copied by way of the host.

        Each has a row more than `rows`: padding of a batch is written to the last.
        """
        buffers = {}
        for name, buffer in self.buffers.items():
            held = buffer.numpy()[:, :, : self._length]
            _, heads, _, *row = held.shape
            copies = np.zeros((count, heads, self.rows + 1, *row), held.dtype)
            copies[:, :, : self._length] = held
            buffers[name] = self.engine.allocate(f"{PAST}.{name}", copies.shape)
            buffers[name].write(copies)
        return KvCache(self.engine, buffers, self.rows, self._length)
