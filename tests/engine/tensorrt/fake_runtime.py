# SPDX-License-Identifier: Apache-2.0
"""TensorRT's Python module without TensorRT: an engine is a Python function on fake device memory.

An engine file holds a name; `FakeTensorRt.models` says what that name computes. As the real one,
it is told shapes and addresses, and runs on whatever lies there when the stream gets to it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from tests.engine.tensorrt.fake_cuda import FakeCuda, Misuse

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "BF16", "INT32", "INT64", "FP8"])
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])

NUMPY: dict[Any, Any] = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.BF16: ml_dtypes.bfloat16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
}


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class Logger:
    """Base of the caller's logger."""

    Severity = Severity

    def log(self, severity: Severity, message: str) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Input:
    dtype: Any
    smallest: Shape
    largest: Shape


@dataclass(frozen=True)
class Output:
    dtype: Any
    shape: Callable[[Mapping[str, Shape]], Shape]  # from the inputs' shapes
    rank: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """What an engine computes."""

    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]
    compute: Callable[[Arrays], Arrays]
    capturable: bool = True
    needs_plugins: bool = False


class FakeTensorRt:
    def __init__(self, cuda: FakeCuda, version: str = "10.3.0", *, rtx: bool = False) -> None:
        self.__version__ = version
        self.cuda = cuda
        self.models: dict[bytes, Model] = {}
        self.loadable_plugins: set[str] = set()
        self.ILogger = Logger
        self.rtx = rtx
        if rtx:
            self.CudaGraphStrategy = enum.Enum("S", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
        self.contexts: list[Context] = []

    def Runtime(self, logger: Logger) -> Runtime:  # noqa: N802
        if self.cuda.devices == 0:
            raise Misuse("a runtime without a GPU is null, and any use of it crashes")
        return Runtime(self, logger)


class Runtime:
    def __init__(self, trt: FakeTensorRt, logger: Logger) -> None:
        self.trt = trt
        self.logger = logger
        self.registry = Registry(trt, logger)

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def deserialize_cuda_engine(self, serialized_engine: Any) -> CudaEngine | None:
        model = self.trt.models.get(bytes(memoryview(serialized_engine)))
        if model is not None and model.needs_plugins and not self.registry.loaded:
            self.logger.log(Severity.ERROR, "Cannot find plugin: TcDualRope")
            return None
        if model is None:
            self.logger.log(Severity.INTERNAL_ERROR, "magicTag failed")
            return None
        return CudaEngine(self, model)


class Registry:
    """A runtime's own plugins."""

    def __init__(self, trt: FakeTensorRt, logger: Logger) -> None:
        self.trt = trt
        self.logger = logger
        self.loaded: list[str] = []

    def load_library(self, plugin_path: str) -> object | None:
        if plugin_path not in self.trt.loadable_plugins or self.loaded:
            self.logger.log(Severity.ERROR, f"Unable to load library: {plugin_path}")
            return None
        self.loaded.append(plugin_path)
        return object()


class CudaEngine:
    def __init__(self, runtime: Runtime, model: Model) -> None:
        self.runtime = runtime
        self.model = model
        self.names = [*model.inputs, *model.outputs]

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self.model.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return (self.model.inputs | dict(self.model.outputs))[name].dtype

    def get_tensor_shape(self, name: str) -> list[int]:
        # As the network has it: the axes of a profile with one size are dynamic in it all the same.
        if name in self.model.inputs:
            return [-1] * len(self.model.inputs[name].smallest)
        return [-1] * self.model.outputs[name].rank

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        assert profile_index == 0
        limits = self.model.inputs[name]
        return [list(limits.smallest), list(limits.largest), list(limits.largest)]

    def create_runtime_config(self) -> SimpleNamespace:
        assert self.runtime.trt.rtx, "only TensorRT-RTX has strategies for graphs"
        return SimpleNamespace(cuda_graph_strategy=self.runtime.trt.CudaGraphStrategy.DISABLED)

    def create_execution_context(self, config: SimpleNamespace | None = None) -> Context:
        context = Context(self, config)
        self.runtime.trt.contexts.append(context)
        return context


class Context:
    def __init__(self, engine: CudaEngine, config: SimpleNamespace | None) -> None:
        self.engine = engine
        self.model = engine.model
        self.config = config
        self.cuda = engine.runtime.trt.cuda
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.warm = False
        self.plain_runs = 0

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        limits = self.model.inputs[name]
        inside = len(shape) == len(limits.smallest) and all(
            low <= size <= high
            for low, size, high in zip(limits.smallest, shape, limits.largest, strict=True)
        )
        if inside and self.shapes.get(name) != shape:
            self.shapes[name] = shape
            self.warm = False
        return inside

    def infer_shapes(self) -> list[str]:
        return [name for name in self.model.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> list[int]:
        if name in self.shapes:
            return list(self.shapes[name])
        return list(self.model.outputs[name].shape(self.shapes))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % 256:
            return False
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        missing = [name for name in self.engine.names if name not in self.addresses]
        if missing or self.infer_shapes():
            self._complain(f"neither address nor shape: {missing or self.infer_shapes()}")
            return False
        capturing = self.cuda.is_capturing(stream_handle)
        if capturing and self.config is not None:
            raise Misuse("a capture around what TensorRT-RTX captures itself")
        done = self.cuda.launch_kernel(
            stream_handle, self._work(), capturable=self.model.capturable and self.warm
        )
        if not done:
            self._complain("Cuda Runtime: operation not permitted when stream is capturing")
        elif not capturing:
            self.warm = True
            self.plain_runs += 1
        return done

    def _complain(self, message: str) -> None:
        self.engine.runtime.logger.log(Severity.ERROR, message)

    def _work(self) -> Callable[[], None]:
        """The computation on today's addresses and shapes, whatever is set later."""
        shapes, addresses = dict(self.shapes), dict(self.addresses)

        def array_at(name: str, shape: Shape, dtype: Any) -> np.ndarray:
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            return self.cuda.bytes_at(addresses[name], nbytes).view(dtype).reshape(shape)

        def work() -> None:
            given = {
                name: array_at(name, shapes[name], NUMPY[spec.dtype]).copy()
                for name, spec in self.model.inputs.items()
            }
            results = self.model.compute(given)
            for name, spec in self.model.outputs.items():
                place = array_at(name, spec.shape(shapes), NUMPY[spec.dtype])
                place[...] = results[name]

        return work
