# SPDX-License-Identifier: Apache-2.0
"""A CUDA runtime without a GPU, under the names of `cuda.bindings.runtime`, and stricter.

Device memory is byte arrays at made-up addresses, which are never used twice. Work on a stream is
kept back until the stream is waited for, as late as real work may be done. What real CUDA would
punish with wrong numbers or a crash, now or later, raises `Misuse` at once.
"""
# ruff: noqa: N802, N815  the names are CUDA's own

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Any

import numpy as np

Work = Callable[[], None]
_FIRST_ADDRESS = 0x7F00_0000_0000
_ALIGNMENT = 256


class Misuse(BaseException):
    """CUDA was used in a way that is undefined."""


class Error(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class CopyKind(Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(Enum):
    cudaStreamCaptureModeThreadLocal = 1


class Handle:
    """A stream, a recorded graph, or one that can be launched."""

    def __init__(self, number: int, kind: str) -> None:
        self.number = number
        self.kind = kind
        self.work: list[Work] = []
        self.recording: list[Work] | None = None
        self.recording_is_valid = True

    def __int__(self) -> int:
        return self.number


class FakeDriver:
    """The driver's library for a fake's GPU, as ctypes calls it: results go to where they point."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def cuInit(self, flags: int) -> int:
        return 0 if self.cuda.devices else 100  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = ordinal
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        assert device.value < self.cuda.devices
        value._obj.value = divmod(self.cuda.sm, 10)[attribute - 75]
        return 0


class FakeCuda:
    cudaMemcpyKind = CopyKind
    cudaStreamCaptureMode = CaptureMode

    def __init__(self, *, devices: int = 1, sm: int = 89, memory_bytes: int = 1 << 30) -> None:
        self.devices = devices
        self.sm = sm
        self.free_bytes = memory_bytes
        self.memory: dict[int, np.ndarray] = {}
        self.handles: dict[int, Handle] = {}
        self.launches = 0
        self.allocations = 0
        self.device_copies = 0
        self.copies_in = 0  # from the host to the device
        self.host_bytes = 0  # copied from the device to the host
        self.driver_is_old = False
        self._next_address = _FIRST_ADDRESS
        self._next_handle = 1
        self._last_error = Error.cudaSuccess

    # What a test looks at.

    def live(self) -> list[str]:
        """Everything that was made and not yet given back."""
        return ["memory"] * len(self.memory) + [handle.kind for handle in self.handles.values()]

    def bytes_at(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes at an address, which must all be of one living allocation."""
        for base, memory in self.memory.items():
            if base <= address < base + len(memory):
                if address + nbytes > base + len(memory):
                    raise Misuse(f"{nbytes} bytes at {address - base} of {len(memory)}")
                return memory[address - base : address - base + nbytes]
        raise Misuse(f"no memory at {address:#x}: never allocated, or freed")

    def launch_kernel(self, stream: int, work: Work, *, capturable: bool) -> bool:
        """Put work on a stream as a kernel's launch does; False where CUDA refuses."""
        handle = self._handle(stream, "stream")
        if self._last_error is not Error.cudaSuccess:
            return False  # the launch looks for an error, and finds an older one
        if handle.recording is None:
            handle.work.append(work)
        elif capturable:
            handle.recording.append(work)
        else:
            handle.recording_is_valid = False
            return False
        return True

    def is_capturing(self, stream: int) -> bool:
        return self._handle(stream, "stream").recording is not None

    # CUDA's functions.

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        if self.driver_is_old:
            return self._fail(Error.cudaErrorInsufficientDriver), None
        return Error.cudaSuccess, self.devices

    def cudaGetLastError(self) -> tuple[Any, ...]:
        error, self._last_error = self._last_error, Error.cudaSuccess
        return (error,)

    def cudaGetErrorString(self, error: Error) -> tuple[Any, ...]:
        return Error.cudaSuccess, f"words for {error.name}".encode()

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        self._outside_capture("cudaMalloc")
        if size > self.free_bytes:
            return self._fail(Error.cudaErrorMemoryAllocation), 0
        address = self._next_address
        # A gap behind each: what runs over the end meets nothing.
        self._next_address += (size // _ALIGNMENT + 2) * _ALIGNMENT
        self.memory[address] = np.full(size, 0xA5, np.uint8)  # never zero by luck
        self.free_bytes -= size
        self.allocations += 1
        return Error.cudaSuccess, address

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        self._outside_capture("cudaFree")
        if address not in self.memory:
            raise Misuse(f"{address:#x} freed twice, or never allocated")
        for handle in self.handles.values():
            if handle.kind == "stream":
                self._do(handle.work)  # freeing waits for the whole device
        self.free_bytes += len(self.memory.pop(address))
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: CopyKind, stream: Handle
    ) -> tuple[Any, ...]:
        self._outside_capture("a copy of pageable memory")
        work = self._handle(stream.number, "stream").work
        if kind is CopyKind.cudaMemcpyHostToDevice:
            self.copies_in += 1
            staged = np.frombuffer(ctypes.string_at(src, count), np.uint8)

            def copy() -> None:
                self.bytes_at(dst, count)[:] = staged
        elif kind is CopyKind.cudaMemcpyDeviceToDevice:
            self.device_copies += 1

            def copy() -> None:
                self.bytes_at(dst, count)[:] = self.bytes_at(src, count)
        else:
            self.host_bytes += count

            def copy() -> None:
                ctypes.memmove(dst, self.bytes_at(src, count).tobytes(), count)

        work.append(copy)
        return (Error.cudaSuccess,)

    def cudaMemsetAsync(
        self, address: int, value: int, count: int, stream: Handle
    ) -> tuple[Any, ...]:
        def fill() -> None:
            self.bytes_at(address, count)[:] = value

        self._handle(stream.number, "stream").work.append(fill)
        return (Error.cudaSuccess,)

    def cudaStreamCreate(self) -> tuple[Any, ...]:
        return Error.cudaSuccess, self._new("stream")

    def cudaStreamDestroy(self, stream: Handle) -> tuple[Any, ...]:
        self._do(self._handle(stream.number, "stream").work)
        del self.handles[stream.number]
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Handle) -> tuple[Any, ...]:
        self._outside_capture("cudaStreamSynchronize")
        self._do(self._handle(stream.number, "stream").work)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Handle, mode: CaptureMode) -> tuple[Any, ...]:
        self._outside_capture("a second capture")
        handle = self._handle(stream.number, "stream")
        handle.recording, handle.recording_is_valid = [], True
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Handle) -> tuple[Any, ...]:
        handle = self._handle(stream.number, "stream")
        if handle.recording is None:
            raise Misuse("the end of a capture that was not begun")
        recorded, handle.recording = handle.recording, None
        if not handle.recording_is_valid:
            return self._fail(Error.cudaErrorStreamCaptureInvalidated), None
        graph = self._new("graph")
        graph.work = recorded
        return Error.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: Handle, flags: int) -> tuple[Any, ...]:
        launchable = self._new("launchable graph")
        launchable.work = list(self._handle(graph.number, "graph").work)
        return Error.cudaSuccess, launchable

    def cudaGraphDestroy(self, graph: Handle) -> tuple[Any, ...]:
        self._handle(graph.number, "graph")
        del self.handles[graph.number]
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Handle) -> tuple[Any, ...]:
        self._handle(graph.number, "launchable graph")
        del self.handles[graph.number]
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Handle, stream: Handle) -> tuple[Any, ...]:
        self._outside_capture("a launch")
        work = self._handle(graph.number, "launchable graph").work
        self._handle(stream.number, "stream").work.extend(work)
        self.launches += 1
        return (Error.cudaSuccess,)

    # Inside.

    def _new(self, kind: str) -> Handle:
        handle = Handle(self._next_handle, kind)
        self.handles[handle.number] = handle
        self._next_handle += 1
        return handle

    def _handle(self, number: int, kind: str) -> Handle:
        handle = self.handles.get(number)
        if handle is None or handle.kind != kind:
            raise Misuse(f"{number} is no {kind}: never made, or destroyed")
        return handle

    def _fail(self, error: Error) -> Error:
        self._last_error = error
        return error

    def _outside_capture(self, what: str) -> None:
        if any(handle.recording is not None for handle in self.handles.values()):
            raise Misuse(f"{what} while a stream is captured")

    @staticmethod
    def _do(work: list[Work]) -> None:
        todo, work[:] = list(work), []
        for piece in todo:
            piece()
