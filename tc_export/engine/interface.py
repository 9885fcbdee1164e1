# SPDX-License-Identifier: Apache-2.0
"""What a backend offers: load a graph or engine, bind buffers, run.

Tensors that live longer than one call, such as the cache, are `Buffer`s on the backend's device.
A buffer may be bound to an input and to an output at once; then the backend updates it in place.
Everything else goes in and out as NumPy arrays, call by call. Any type of numbers may be fed; what
is bfloat16, which NumPy lacks, is handed out as float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FRAMES_A_CALL = 8
"""Most frames that go through the vision engine at once: bounds its memory, costs no speed."""

LOGITS_A_CALL = 64
"""Most tokens of a call whose logits are asked for: generation wants one, a comparison more."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output. An axis is a length, or the name of a dynamic axis."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str, ...]


class Buffer(ABC):
    """Memory on the backend's device with a fixed shape and type."""

    @abstractmethod
    def numpy(self) -> np.ndarray:
        """A copy of the contents on the host."""

    @abstractmethod
    def write(self, values: np.ndarray) -> None:
        """Replace the contents; `values` has the buffer's shape and type."""


class Engine(ABC):
    """A loaded graph or engine."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    backend: str
    """Backend and device as a person reads them, for example `ONNX Runtime 1.31.1, CPU`."""
    native_nodes: Mapping[str, int]
    """How many nodes of each custom op our native library serves; empty without the library."""

    @abstractmethod
    def allocate(self, name: str, shape: Sequence[int]) -> Buffer:
        """A zeroed buffer of the type of input or output `name`."""

    @abstractmethod
    def bind(self, name: str, buffer: Buffer) -> None:
        """Use `buffer` for input or output `name` from now on."""

    @abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once with all inputs that are not bound; return all outputs that are not bound."""
