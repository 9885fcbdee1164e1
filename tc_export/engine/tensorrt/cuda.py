# SPDX-License-Identifier: Apache-2.0
"""CUDA: which GPU is here, device memory, one stream, and graphs of what was put on it.

The GPU is asked for through the driver's own library, which is there wherever a GPU can be used: a
builder needs no more. What runs engines goes through NVIDIA's Python bindings. What is used of them
(`cuda.bindings.runtime`) is in `CudaRuntime`. Each of its functions returns a tuple, the error code
first; `call` is the one place that looks at it.
"""
# ruff: noqa: N815  the names are CUDA's own

from __future__ import annotations

import ctypes
import importlib
import logging
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from tc_export.errors import TcExportError, UnsupportedEnvironment

if TYPE_CHECKING:  # the process that builds an engine does without
    import numpy as np

_log = logging.getLogger(__name__)

DRIVER = "libcuda.so.1"
BINDINGS = "cuda.bindings.runtime"

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
_NO_GPU_HINT = "run this on a machine with the target's GPU and its driver: tc-export doctor"

Returned = tuple[Any, ...]
"""An error code, then the results."""


class CudaRuntime(Protocol):
    """The part of `cuda.bindings.runtime` that is used. Handles are objects that int() takes."""

    cudaMemcpyKind: Any
    cudaStreamCaptureMode: Any

    cudaGetDeviceCount: Callable[[], Returned]
    cudaGetLastError: Callable[[], Returned]
    cudaGetErrorString: Callable[[Any], Returned]
    cudaMalloc: Callable[[int], Returned]
    cudaFree: Callable[[int], Returned]
    cudaMemcpyAsync: Callable[[int, int, int, Any, Any], Returned]  # to, from, bytes, kind, stream
    cudaMemsetAsync: Callable[[int, int, int, Any], Returned]  # to, value, bytes, stream
    cudaStreamCreate: Callable[[], Returned]
    cudaStreamDestroy: Callable[[Any], Returned]
    cudaStreamSynchronize: Callable[[Any], Returned]
    cudaStreamBeginCapture: Callable[[Any, Any], Returned]
    cudaStreamEndCapture: Callable[[Any], Returned]
    cudaGraphInstantiate: Callable[[Any, int], Returned]
    cudaGraphDestroy: Callable[[Any], Returned]
    cudaGraphExecDestroy: Callable[[Any], Returned]
    cudaGraphLaunch: Callable[[Any, Any], Returned]


# Errors that say something of the machine, and what to do about them; any other is a bug of ours.
_LACKS = {
    "cudaErrorInsufficientDriver": (
        "install NVIDIA's driver for this GPU, or the CUDA bindings of its CUDA version: "
        "tc-export doctor says what is here"
    ),
    "cudaErrorNoDevice": "run this on the machine that the bundle was built for",
    "cudaErrorMemoryAllocation": (
        "end other programs on the GPU, or build with a smaller --max-length or --max-frames"
    ),
}


def compute_capability() -> int:
    """The compute capability of the first GPU, as one number: 8.9 is 89.

    Raises:
        UnsupportedEnvironment: no driver, or no GPU.
    """
    driver = open_driver()
    device = ctypes.c_int()
    values = (ctypes.c_int(), ctypes.c_int())
    status = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    for attribute, value in zip((_MAJOR, _MINOR), values, strict=True):
        status = status or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    if status:
        raise UnsupportedEnvironment(
            f"there is no CUDA GPU here: the driver finds none (CUDA error {status})",
            hint=_NO_GPU_HINT,
        )
    major, minor = (value.value for value in values)
    return 10 * major + minor


def open_driver() -> Any:
    """Load the driver's library.

    Raises:
        UnsupportedEnvironment: there is no driver.
    """
    try:
        return ctypes.CDLL(DRIVER)
    except OSError as error:
        raise UnsupportedEnvironment(
            f"no GPU can be used here: there is no NVIDIA driver: {error}", hint=_NO_GPU_HINT
        ) from error


def open_cuda() -> CudaRuntime:
    """Import the bindings, and see that the driver serves them.

    Raises:
        UnsupportedEnvironment: they are not installed, or are of a newer CUDA than the driver.
    """
    try:
        bindings: CudaRuntime = importlib.import_module(BINDINGS)
    except ImportError as error:
        raise UnsupportedEnvironment(
            f"running a TensorRT engine needs the CUDA bindings for Python: {error}",
            hint="pip install cuda-bindings, of the CUDA version of the driver: "
            "'cuda-bindings<13' for CUDA 12",
        ) from error
    call(bindings, "cudaGetDeviceCount")
    return bindings


def call(runtime: CudaRuntime, function: str, *arguments: Any) -> Any:
    """Call a function of the runtime; return its result, where it has one.

    Raises:
        UnsupportedEnvironment: this machine cannot do it: no driver, no GPU, no memory left.
        TcExportError: any other error of CUDA.
    """
    try:
        status, *results = getattr(runtime, function)(*arguments)
    except RuntimeError as error:  # older bindings raise where there is no driver at all
        raise UnsupportedEnvironment(
            f"CUDA cannot be used here: {error}", hint=_LACKS["cudaErrorInsufficientDriver"]
        ) from error
    if int(status) != 0:
        # CUDA keeps the error until it is asked for: the next kernel would report it as its own.
        runtime.cudaGetLastError()
        _, text = runtime.cudaGetErrorString(status)
        spelt = f"{function}({', '.join(map(str, arguments))})"
        message = f"{spelt} failed: {text.decode()} ({status.name})"
        if status.name in _LACKS:
            raise UnsupportedEnvironment(message, hint=_LACKS[status.name])
        raise TcExportError(message)
    return results[0] if results else None


def _release(owner: object, runtime: CudaRuntime, function: str, handle: Any) -> None:
    """Give a handle back once its owner is gone; at the process's end the driver does it."""
    finalizer = weakref.finalize(owner, call, runtime, function, handle)
    finalizer.atexit = False


class DeviceMemory:
    """Memory on the GPU, freed when nobody holds it any more."""

    def __init__(self, runtime: CudaRuntime, nbytes: int) -> None:
        self.nbytes = nbytes
        # No bytes at all would have no address.
        self.address = int(call(runtime, "cudaMalloc", max(nbytes, 1)))
        _release(self, runtime, "cudaFree", self.address)


class Stream:
    """Work that the GPU does in order, behind the host's back until `synchronize`."""

    def __init__(self, runtime: CudaRuntime) -> None:
        self._runtime = runtime
        self._handle = call(runtime, "cudaStreamCreate")
        _release(self, runtime, "cudaStreamDestroy", self._handle)

    def __int__(self) -> int:
        return int(self._handle)

    def allocate(self, nbytes: int) -> DeviceMemory:
        """Memory for work on this stream."""
        return DeviceMemory(self._runtime, nbytes)

    def fill_with_zeros(self, memory: DeviceMemory) -> None:
        """Clear the memory."""
        call(self._runtime, "cudaMemsetAsync", memory.address, 0, memory.nbytes, self._handle)

    def copy_in(self, memory: DeviceMemory, array: np.ndarray) -> None:
        """Copy a contiguous array to the GPU; it must live until `synchronize`."""
        self._copy(memory.address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def copy_out(self, array: np.ndarray, memory: DeviceMemory) -> None:
        """Copy from the GPU into a contiguous array, which is filled after `synchronize`."""
        self._copy(array.ctypes.data, memory.address, array.nbytes, "cudaMemcpyDeviceToHost")

    def copy(self, to: DeviceMemory, source: DeviceMemory) -> None:
        """Copy all of `source` from one place on the GPU to another."""
        self._copy(to.address, source.address, source.nbytes, "cudaMemcpyDeviceToDevice")

    def _copy(self, to: int, source: int, nbytes: int, kind: str) -> None:
        kinds = self._runtime.cudaMemcpyKind
        call(
            self._runtime, "cudaMemcpyAsync", to, source, nbytes, getattr(kinds, kind), self._handle
        )

    def synchronize(self) -> None:
        """Wait until all work is done; errors of that work come up here."""
        call(self._runtime, "cudaStreamSynchronize", self._handle)

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """Record the work that `enqueue` puts on this stream, without doing it.

        Raises:
            TcExportError: something in it cannot be captured; the stream is usable again.
        """
        # Thread-local: what other threads do meanwhile, such as allocating, does no harm.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._runtime, "cudaStreamBeginCapture", self._handle, mode)
        try:
            enqueue()
        except BaseException:
            # The capture has to end; what it may have recorded is of no use.
            with suppress(TcExportError):
                recorded = call(self._runtime, "cudaStreamEndCapture", self._handle)
                call(self._runtime, "cudaGraphDestroy", recorded)
            raise
        recorded = call(self._runtime, "cudaStreamEndCapture", self._handle)
        try:
            return Graph(self._runtime, recorded, self._handle)
        finally:
            call(self._runtime, "cudaGraphDestroy", recorded)


class Graph:
    """Recorded work that is launched at once. Its addresses and shapes are those of its capture."""

    def __init__(self, runtime: CudaRuntime, recorded: Any, stream: Any) -> None:
        self._runtime = runtime
        self._stream = stream
        self._handle = call(runtime, "cudaGraphInstantiate", recorded, 0)
        _release(self, runtime, "cudaGraphExecDestroy", self._handle)

    def launch(self) -> None:
        """Put the work on the stream that it was recorded from."""
        call(self._runtime, "cudaGraphLaunch", self._handle, self._stream)


class Repeater:
    """Puts the same work on a stream again and again: plainly at first, then as a graph.

    The first time after a change runs plainly, since TensorRT prepares itself then in ways that
    cannot be captured. The second time is captured, and from then on it is launched.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._ran_before = False
        self._graph: Graph | None = None
        self.refusal: str | None = None
        """Why nothing is captured any more."""

    @property
    def captured(self) -> bool:
        """True where the next run launches a graph."""
        return self._graph is not None

    def forget(self) -> None:
        """Shapes or addresses have changed: what was recorded is another work."""
        self._graph = None
        self._ran_before = False

    def run(self, enqueue: Callable[[], None]) -> None:
        """Put the work on the stream once: what `enqueue` puts there, the same each time."""
        if self._graph is None and self._ran_before and self.refusal is None:
            self._capture(enqueue)
        if self._graph is not None:
            self._graph.launch()
        else:
            enqueue()
            self._ran_before = True

    def _capture(self, enqueue: Callable[[], None]) -> None:
        try:
            self._graph = self._stream.capture(enqueue)
        except TcExportError as error:
            self.refusal = str(error)
            _log.warning("running without a CUDA graph, slower: %s", self.refusal)
