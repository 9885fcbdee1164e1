# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: import the one that is wanted, and load engines with our plugins.

Only what exists alike in TensorRT 10.3 to 11.4 and in TensorRT-RTX is used; `TrtModule` lists it.
Graphs of CUDA are the exception: TensorRT-RTX compiles kernels while it runs, and captures them
itself once they are there.
"""

from __future__ import annotations

import importlib
import logging
import mmap
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tc_export.engine.tensorrt.cuda import CudaRuntime, Stream, compute_capability
from tc_export.engine.tensorrt.flavours import FLAVOURS
from tc_export.errors import BundleError, EnvironmentLacks

_LAST_ERRORS = 4  # of TensorRT's own, in a message

_log = logging.getLogger(__name__)


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


class TensorRt:
    """One of the two on this machine's GPU, with a stream for the work of its engines."""

    def __init__(self, backend: str, module: TrtModule, cuda: CudaRuntime) -> None:
        """Take the libraries as they are.

        Raises:
            EnvironmentLacks: there is no GPU.
        """
        self.version = module.__version__
        self.name = f"{FLAVOURS[backend].title} {self.version}"
        self.sm = compute_capability(cuda)  # first: without a GPU, TensorRT's runtime is null
        self.stream = Stream(cuda)
        # Only TensorRT-RTX has strategies.
        self._strategies: Any = getattr(module, "CudaGraphStrategy", None)
        self._logger = _make_logger(module)
        self._runtime = module.Runtime(self._logger)

    def load_plugins(self, library: Path) -> None:
        """Register our plugins with this runtime alone, so that bundles do not share them.

        Raises:
            EnvironmentLacks: the library does not load here.
        """
        if self._runtime.get_plugin_registry().load_library(str(library)) is None:
            raise EnvironmentLacks(
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
            EnvironmentLacks: there is not enough memory for it.
        """
        if self.captures_graphs:
            config = engine.create_runtime_config()
            config.cuda_graph_strategy = self._strategies.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise EnvironmentLacks(
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


def import_tensorrt(backend: str) -> TrtModule:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        EnvironmentLacks: it is not here, or does not load.
    """
    reasons = []
    for name in FLAVOURS[backend].modules:
        try:
            module: TrtModule = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: its libraries are not there
            reasons.append(str(error))
        else:
            return module
    raise EnvironmentLacks(
        f"the bundle's engine needs {FLAVOURS[backend].title}, which cannot be imported: "
        f"{'; '.join(reasons)}",
        hint=FLAVOURS[backend].install,
    )


def _make_logger(module: TrtModule) -> Any:
    """TensorRT's messages: warnings go to the log, errors are kept for our own message."""
    base: Any = module.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: deque[str] = deque(maxlen=_LAST_ERRORS)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.errors.append(message)
            elif severity.name == "WARNING":
                _log.warning("%s", message)

    return Logger()
