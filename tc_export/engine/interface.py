# SPDX-License-Identifier: Apache-2.0
"""What a backend offers: load a graph or engine, hold caches, run.

Tensors that live longer than one call are `Buffer`s on the backend's device. A buffer may be bound
to an input and to an output at once; then the backend updates it in place. A `KvCache` is a set of
such buffers that belongs to a session; the engine binds them when that session runs. Everything
else goes in and out as NumPy arrays, call by call. Any type of numbers may be fed; what is
bfloat16, which NumPy lacks, is handed out as float32.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tc_export.contracts.graph_io import PAST, PRESENT, is_past
from tc_export.engine.kv_cache import KvCache
from tc_export.errors import UsageError


@dataclass(frozen=True)
class TensorInfo:
    """An input or output. An axis is a length, or the name of a dynamic axis."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str, ...]


class Buffer(ABC):
    """Memory on the backend's device with a fixed shape and type."""

    shape: tuple[int, ...]
    nbytes: int

    @abstractmethod
    def numpy(self) -> np.ndarray:
        """A copy of the contents on the host."""

    @abstractmethod
    def write(self, values: np.ndarray) -> None:
        """Replace the contents; `values` has the buffer's shape and type."""

    @abstractmethod
    def copy(self) -> Buffer:
        """Another buffer with the same contents, made on the device."""


class Engine(ABC):
    """A loaded graph or engine.

    One call runs at a time: sessions of several threads wait for each other here.
    """

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    backend: str
    """Backend and device as a person reads them, for example `ONNX Runtime 1.31.1, CPU`."""
    native_nodes: Mapping[str, int]
    """How many nodes of each custom op our native library serves; empty without the library."""

    def __init__(self) -> None:
        # Weak: a cache holds its engine, and memory on a device must not wait for the collector.
        self._active: weakref.ref[KvCache] | None = None
        self._lock = threading.RLock()

    def new_cache(self, rows: int, batch: int = 1) -> KvCache:
        """An empty cache for `rows` tokens.

        Raises:
            UsageError: the engine was built for fewer rows, or takes no cache.
        """
        buffers = {}
        for name, info in self.inputs.items():
            if is_past(name):
                _, heads, built, *row = info.shape
                shape = (batch, int(heads), _rows(built, rows), *map(int, row))
                buffers[name.removeprefix(f"{PAST}.")] = self.allocate(name, shape)
        if not buffers:
            raise UsageError(f"{self.backend}: this engine takes no cache")
        return KvCache(self, buffers, rows)

    def bind(self, name: str, buffer: Buffer) -> None:
        """Use `buffer` for input or output `name` from now on.

        Where a session's cache was active it no longer is: the session binds its own again.
        """
        with self._lock:
            self._active = None
            self._bind(name, buffer)

    def run(
        self, feeds: Mapping[str, np.ndarray], cache: KvCache | None = None
    ) -> dict[str, np.ndarray]:
        """Run once with all inputs that are not bound; return all outputs that are not bound.

        Args:
            feeds: values of the inputs.
            cache: a cache of this engine, read and written in place. No data moves when another
                one was in use before: its buffers are bound, and those of the other stay whole.

        Raises:
            ValueError: an input is missing or unknown, the cache is another engine's, or none is
                given while a session's cache is bound.
        """
        with self._lock:
            active = None if self._active is None else self._active()
            if cache is None and active is not None:
                raise ValueError("the bound cache belongs to a session: give the call its own")
            if cache is not None and cache is not active:
                self._activate(cache)
            return self._run(feeds)

    def _activate(self, cache: KvCache) -> None:
        if cache.engine is not self:
            raise ValueError(f"the cache is of another engine: {cache.engine.backend}")
        self._active = None  # should a buffer be refused half-way
        for name, buffer in cache.buffers.items():
            self._bind(f"{PAST}.{name}", buffer)
            self._bind(f"{PRESENT}.{name}", buffer)
        self._active = weakref.ref(cache)

    def pass_on(self, feeds: Mapping[str, Any], output: str) -> Any:
        """Run once, and return one output for another engine of the same backend to be fed with.

        It need not leave the device; then it holds until this engine runs again. Here it does.
        """
        with self._lock:
            return self._run(feeds)[output]

    @abstractmethod
    def allocate(self, name: str, shape: Sequence[int]) -> Buffer:
        """A zeroed buffer of the type of input or output `name`."""

    @abstractmethod
    def _bind(self, name: str, buffer: Buffer) -> None:
        """See `bind`."""

    @abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `run`."""


def _rows(built: int | str, wanted: int) -> int:
    """Rows of a cache: those wanted, or all where the engine was built for one size."""
    if isinstance(built, str):
        return wanted
    if built < wanted:
        raise UsageError(
            f"a cache of {wanted} tokens was asked for, and the engine holds {built}",
            hint="use fewer frames, or build with a larger --max-length",
        )
    return built
