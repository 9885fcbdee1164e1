# SPDX-License-Identifier: Apache-2.0
"""A serialised engine of TensorRT or TensorRT-RTX behind the engine interface.

`TensorRtRuntime` loads engines with our plugins; `TrtEngine` runs one. Only what exists alike in
TensorRT 10.3 to 11.4 and in TensorRT-RTX is used; `TrtModule` lists it. Graphs of CUDA are the
exception: TensorRT-RTX compiles kernels while it runs, and captures them itself once they are
there.

Bound buffers stay where they are, in device memory: a cache that is bound to its input and to its
output is updated in place. All other inputs and outputs have device memory of their own, which
grows to the largest call so far and is kept, so that addresses stay the same from call to call. A
call like the one before it, as decoding makes them, is launched as a CUDA graph.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tc_export.dtypes import DType, widen
from tc_export.engine.interface import Buffer, Engine, TensorInfo
from tc_export.engine.tensorrt.bindings import import_tensorrt, new_logger
from tc_export.engine.tensorrt.buffers import DeviceArray, Limits, Shape, TrtBuffer
from tc_export.engine.tensorrt.cuda import (
    CudaRuntime,
    DeviceMemory,
    Repeater,
    Stream,
    compute_capability,
    open_cuda,
)
from tc_export.engine.tensorrt.flavours import Flavour
from tc_export.errors import BundleError, TcExportError, UnsupportedEnvironment

_TYPES = ("FLOAT", "HALF", "BF16", "INT32", "INT64")  # of inputs and outputs


class TrtModule(Protocol):
    """The part of TensorRT's Python module that is used, under the names that it has there.

    `Runtime(logger)` has `deserialize_cuda_engine(buffer)`, `get_plugin_registry()`; the registry
    has `load_library(path)`. An engine has `num_io_tensors`, `get_tensor_name(index)`,
    `get_tensor_mode`, `get_tensor_dtype`, `get_tensor_shape`, `get_tensor_profile_shape(name, 0)`,
    `create_execution_context()`. A context has `set_input_shape`, `get_tensor_shape`,
    `infer_shapes`, `set_tensor_address`, `execute_async_v3`. TensorRT-RTX adds `CudaGraphStrategy`
    and an engine's `create_runtime_config()`.
    """

    __version__: str
    ILogger: Any
    Runtime: Callable[[Any], Any]


class TensorRtRuntime:
    """One of the two on this machine's GPU, with a stream for the work of its engines."""

    def __init__(self, flavour: Flavour, trt: TrtModule, cuda: CudaRuntime, sm: int) -> None:
        """Take the libraries as they are, on a GPU of compute capability `sm`.

        There has to be a GPU: without one, TensorRT's runtime is null, and crashes when it is used.
        """
        self.name = f"{flavour.title} {trt.__version__}"
        self.sm = sm
        self.stream = Stream(cuda)
        # Only TensorRT-RTX has strategies.
        self._strategies: Any = getattr(trt, "CudaGraphStrategy", None)
        self._logger = new_logger(trt)
        self._runtime = trt.Runtime(self._logger)

    def load_plugins(self, library: Path) -> None:
        """Register our plugins with this runtime alone, so that bundles do not share them.

        Raises:
            UnsupportedEnvironment: the library does not load here.
        """
        if self._runtime.get_plugin_registry().load_library(str(library)) is None:
            raise UnsupportedEnvironment(
                f"{self.name} cannot load the plugins {library}: {self.complaints()}",
                hint="build them for this machine: tc-export plugins build --target TARGET",
            )

    def load_engine(self, path: Path) -> Any:
        """Deserialise an engine; the file is mapped, not read into memory a second time.

        Raises:
            BundleError: there is no such file, or TensorRT refuses it.
        """
        try:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            ):
                engine = self._runtime.deserialize_cuda_engine(content)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
            raise BundleError(
                f"{path} cannot be read: {error}",
                hint="tc-export verify BUNDLE names files that are changed or missing",
            ) from error
        if engine is None:
            raise BundleError(
                f"{self.name} on a GPU of SM {self.sm} refuses {path}: {self.complaints()}",
                hint="tc-export verify BUNDLE tells whether the file is damaged; if it is not, "
                "build the engine again for this GPU and this version",
            )
        return engine

    def create_context(self, engine: Any) -> Any:
        """A context to run `engine` in.

        Raises:
            UnsupportedEnvironment: there is not enough memory for it.
        """
        if self.captures_graphs:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = self._strategies.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise UnsupportedEnvironment(
                f"{self.name} cannot prepare the engine to run: {self.complaints()}",
                hint="most often the GPU's memory is full: end other programs on it, or build "
                "with a smaller --max-length or --max-frames",
            )
        return context

    @property
    def captures_graphs(self) -> bool:
        """True where TensorRT itself records what it runs, and launches it as a graph."""
        return self._strategies is not None

    def complaints(self) -> str:
        """What TensorRT has reported as errors since it was last asked."""
        said = "; ".join(self._logger.errors) or "it does not say why"
        self._logger.errors.clear()
        return said


def open_runtime(flavour: Flavour) -> TensorRtRuntime:
    """TensorRT or TensorRT-RTX as it is installed here.

    Raises:
        UnsupportedEnvironment: this machine lacks it, a GPU, or the CUDA bindings.
    """
    trt = import_tensorrt(flavour)
    sm = compute_capability()
    return TensorRtRuntime(flavour, trt, open_cuda(), sm)


class TrtEngine(Engine):
    """An engine on this machine's GPU.

    bfloat16 is fed as any type of numbers, and handed out as float32. A `DeviceArray` of another
    engine is read where it lies.
    """

    def __init__(
        self,
        path: Path,
        tensorrt: TensorRtRuntime,
        *,
        native_nodes: Mapping[str, int] | None = None,
    ) -> None:
        """Load the engine at `path`, whose plugins `tensorrt` has loaded.

        Raises:
            BundleError: the file cannot be loaded, or is no engine of ours.
            UnsupportedEnvironment: the GPU's memory does not hold it.
        """
        super().__init__()
        self._tensorrt = tensorrt
        self._stream = tensorrt.stream
        self._engine = tensorrt.load_engine(path)
        self._context = tensorrt.create_context(self._engine)
        self.backend = f"{tensorrt.name}, SM {tensorrt.sm}"
        self.native_nodes = dict(native_nodes or {})
        self._limits: dict[str, Limits] = {}
        self.inputs, self.outputs = self._describe(path)
        self._bound: dict[str, TrtBuffer] = {}
        self._own: dict[str, DeviceMemory] = {}
        self._lent: dict[str, DeviceArray] = {}  # for one call
        self._fed: Sequence[np.ndarray] = ()  # what a copy may still read
        self._fetched: dict[str, Shape] = {}  # outputs that are not bound, of the last call
        # What the context was last told.
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._repeater = Repeater(self._stream)

    @property
    def graph_capture(self) -> str:
        """Who captures CUDA graphs, whether the next call launches one, or why none does."""
        return capture_state(self._tensorrt, self._repeater)

    def allocate(self, name: str, shape: Sequence[int]) -> TrtBuffer:
        """See `Engine.allocate`."""
        info = self.inputs.get(name) or self.outputs[name]
        return TrtBuffer(self._stream, info.dtype, tuple(shape))

    def _bind(self, name: str, buffer: Buffer) -> None:
        assert isinstance(buffer, TrtBuffer)
        info = self.inputs.get(name) or self.outputs[name]
        if buffer.dtype != info.dtype:
            raise ValueError(f"{name} is {info.dtype}, and the buffer {buffer.dtype}")
        if name in self.inputs:
            self._limits[name].check(name, buffer.shape)
        self._bound[name] = buffer
        self._own.pop(name, None)

    def pass_on(self, feeds: Mapping[str, Any], output: str) -> DeviceArray:
        """See `Engine.pass_on`: the output stays on the GPU, and nothing is waited for."""
        with self._lock:
            self._start(feeds)
            return self.place_of(output)

    def _start(self, feeds: Mapping[str, Any]) -> None:
        """Put one run on the stream."""
        repeat(self._tensorrt, self._repeater, self.enqueue, same=self.make_ready(feeds))

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._start(feeds)
        return self.fetch()

    def make_ready(self, feeds: Mapping[str, Any]) -> bool:
        """Copy the inputs to the GPU, and tell the context where everything lies.

        Returns whether shapes and places are those of the call before: so that what was recorded
        then may be launched again. Who calls this, `enqueue` and `fetch` sees to it that nobody
        else runs the engine meanwhile.
        """
        self._check_names(feeds)
        self._lent = {name: x for name, x in feeds.items() if isinstance(x, DeviceArray)}
        for name, lent in self._lent.items():
            if lent.dtype != self.inputs[name].dtype:
                raise ValueError(f"{name} is {self.inputs[name].dtype}, and given is {lent.dtype}")
            if lent.stream is not self._stream:
                lent.stream.synchronize()  # two streams know nothing of each other
            self._own.pop(name, None)
        arrays = {
            name: np.ascontiguousarray(array, self.inputs[name].dtype)
            for name, array in feeds.items()
            if name not in self._lent
        }
        shapes = {name: array.shape for name, array in arrays.items()}
        shapes |= {name: lent.shape for name, lent in self._lent.items()}
        bound = {name: self._bound[name].shape for name in self.inputs if name in self._bound}
        same = self._prepare(shapes | bound)
        for name, array in arrays.items():
            self._stream.copy_in(self._own[name], array)
        self._fed = tuple(arrays.values())
        return same

    def enqueue(self) -> None:
        """Put what was made ready on the stream."""
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failure("failed to run the engine")

    def place_of(self, name: str) -> DeviceArray:
        """Where an input or output that is not bound lies; holds until the next call is made ready.

        An output is there once the stream has come so far.
        """
        if name in self._lent:
            return self._lent[name]
        info = self.inputs.get(name) or self.outputs[name]
        shape = self._fetched[name] if name in self.outputs else self._shapes[name]
        return DeviceArray(self._own[name], shape, info.dtype, self._stream)

    def fetch(self) -> dict[str, np.ndarray]:
        """Wait for what is on the stream; return the outputs that are not bound."""
        results = {
            name: np.empty(shape, self.outputs[name].dtype) for name, shape in self._fetched.items()
        }
        for name, result in results.items():
            self._stream.copy_out(result, self._own[name])
        self._stream.synchronize()
        return {name: widen(result) for name, result in results.items()}

    def _describe(self, path: Path) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        """All inputs and outputs; an axis with one size only in the profile is not dynamic."""
        inputs: dict[str, TensorInfo] = {}
        outputs: dict[str, TensorInfo] = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            type_name = self._engine.get_tensor_dtype(name).name
            if type_name not in _TYPES:
                raise BundleError(
                    f"{name} of {path} has the type {type_name}; known: {', '.join(_TYPES)}",
                    hint="build the engine again with `tc-export build`",
                )
            shape = tuple(self._engine.get_tensor_shape(name))
            is_input = self._engine.get_tensor_mode(name).name == "INPUT"
            if is_input:
                smallest, _, largest = map(tuple, self._engine.get_tensor_profile_shape(name, 0))
                self._limits[name] = Limits(smallest, largest)
                shape = tuple(
                    low if low == high else -1 for low, high in zip(smallest, largest, strict=True)
                )
            axes = tuple(size if size >= 0 else f"axis {i}" for i, size in enumerate(shape))
            info = TensorInfo(name, DType.from_tensorrt(type_name).numpy, axes)
            (inputs if is_input else outputs)[name] = info
        return inputs, outputs

    def _check_names(self, feeds: Mapping[str, np.ndarray]) -> None:
        missing = self.inputs.keys() - self._bound - feeds.keys()
        if missing:
            raise ValueError(f"inputs neither given nor bound: {', '.join(sorted(missing))}")
        unknown = feeds.keys() - (self.inputs.keys() - self._bound)
        if unknown:
            raise ValueError(f"given, but bound or no inputs: {', '.join(sorted(unknown))}")

    def _prepare(self, shapes: Mapping[str, Shape]) -> bool:
        """Tell the context shapes and addresses; return whether they are those of before."""
        for name, shape in shapes.items():
            self._limits[name].check(name, shape)
        same_shapes = self._shapes == shapes
        if not same_shapes:
            self._set_shapes(shapes)
        self._fetched = {
            name: tuple(self._context.get_tensor_shape(name))
            for name in self.outputs
            if name not in self._bound
        }
        elsewhere = self._bound.keys() | self._lent.keys()
        own = {name: shape for name, shape in shapes.items() if name not in elsewhere}
        for name, shape in (own | self._fetched).items():
            self._make_room(name, shape)
        same_addresses = self._set_addresses()
        return same_shapes and same_addresses

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        self._shapes = {}  # should it fail half-way, nothing is known of the context
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._failure(f"does not take {name} as {list(shape)}")
        unknown = self._context.infer_shapes()
        if unknown:
            raise self._failure(f"cannot tell the shapes of {', '.join(unknown)}")
        self._shapes = dict(shapes)

    def _make_room(self, name: str, shape: Shape) -> None:
        info = self.inputs.get(name) or self.outputs[name]
        nbytes = math.prod(shape) * info.dtype.itemsize
        if name not in self._own or self._own[name].nbytes < nbytes:
            self._own.pop(name, None)  # frees the old before there is a new one
            self._own[name] = self._stream.allocate(nbytes)

    def _set_addresses(self) -> bool:
        """Tell the context where everything lies; return whether it lay there before."""
        addresses = {name: memory.address for name, memory in self._own.items()}
        addresses |= {name: buffer.memory.address for name, buffer in self._bound.items()}
        addresses |= {name: lent.memory.address for name, lent in self._lent.items()}
        if addresses == self._addresses:
            return True
        self._addresses = {}
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._failure(f"does not take the address of {name}")
        self._addresses = addresses
        return False

    def _failure(self, what: str) -> TcExportError:
        said: str = self._tensorrt.complaints()
        return TcExportError(f"{self._tensorrt.name} {what}: {said}")


def repeat(
    tensorrt: TensorRtRuntime, repeater: Repeater, enqueue: Callable[[], None], *, same: bool
) -> None:
    """Run what `enqueue` puts on the stream: by a graph of ours, unless TensorRT makes its own.

    `same`: shapes and places are those of the run before.
    """
    if not same:
        repeater.forget()
    if tensorrt.captures_graphs:
        enqueue()
    else:
        repeater.run(enqueue)


def capture_state(tensorrt: TensorRtRuntime, repeater: Repeater) -> str:
    """Who captures CUDA graphs, whether the next call launches one, or why none does."""
    if tensorrt.captures_graphs:
        return f"by {tensorrt.name}"
    if repeater.refusal is not None:
        return f"off: {repeater.refusal}"
    return "captured" if repeater.captured else "waiting for two calls alike"
