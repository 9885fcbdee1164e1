# SPDX-License-Identifier: Apache-2.0
"""What lies in the GPU's memory between calls, and the shapes that an engine takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tc_export.dtypes import widen
from tc_export.engine.interface import Buffer
from tc_export.engine.tensorrt.cuda import DeviceMemory, Stream
from tc_export.errors import UsageError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Limits:
    """The shapes that the engine was built for: from `smallest` to `largest`, axis by axis."""

    smallest: Shape
    largest: Shape

    def check(self, name: str, shape: Shape) -> None:
        """Refuse a shape that the engine does not take.

        Raises:
            UsageError: saying which it takes.
        """
        if len(shape) == len(self.smallest) and all(
            low <= size <= high
            for low, size, high in zip(self.smallest, shape, self.largest, strict=True)
        ):
            return
        raise UsageError(
            f"{name} is {list(shape)}; the engine was built for {list(self.smallest)} to "
            f"{list(self.largest)}",
            hint="give it less at once, or build with a larger --max-length or --max-frames",
        )


class TrtBuffer(Buffer):
    """Device memory with a shape and a type."""

    def __init__(self, stream: Stream, dtype: np.dtype[np.generic], shape: Shape) -> None:
        self.shape = shape
        self.dtype = dtype
        self.nbytes = math.prod(shape) * dtype.itemsize
        self.memory = stream.allocate(self.nbytes)
        self._stream = stream
        stream.fill_with_zeros(self.memory)
        stream.synchronize()

    def numpy(self) -> np.ndarray:
        """See `Buffer.numpy`; bfloat16 comes out as float32."""
        values = np.empty(self.shape, self.dtype)
        self._stream.copy_out(values, self.memory)
        self._stream.synchronize()
        return widen(values)

    def write(self, values: np.ndarray) -> None:
        """See `Buffer.write`; bfloat16 may be given as float32."""
        if values.shape != self.shape:
            raise ValueError(f"values {list(values.shape)} for a buffer {list(self.shape)}")
        contiguous = np.ascontiguousarray(values, self.dtype)
        self._stream.copy_in(self.memory, contiguous)
        self._stream.synchronize()

    def copy(self) -> TrtBuffer:
        """See `Buffer.copy`; the bytes stay on the GPU."""
        twin = TrtBuffer(self._stream, self.dtype, self.shape)
        self._stream.copy(twin.memory, self.memory)
        self._stream.synchronize()
        return twin


@dataclass(frozen=True)
class DeviceArray:
    """A result that has stayed on the GPU, until the engine that made it runs again."""

    memory: DeviceMemory
    shape: Shape
    dtype: np.dtype[np.generic]
    stream: Stream  # that it is made on
