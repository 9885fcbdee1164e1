# SPDX-License-Identifier: Apache-2.0
"""Open the two engines of a bundle's folder with the backend that they were built for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tc_export.bundle import EngineBuild
from tc_export.bundle.layout import graph_path
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.contracts.parts import decoder_names
from tc_export.engine.interface import Engine
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.engine.tensorrt.flavours import FLAVOURS, TENSORRT, TENSORRT_RTX
from tc_export.engine.tensorrt.loading import open_tensorrt_engines
from tc_export.errors import BundleError, UnsupportedEnvironment, UsageError
from tc_export.native.find import find_native_library, require_native_library

ONNX_RUNTIME = "onnxruntime"
BACKENDS = (ONNX_RUNTIME, TENSORRT, TENSORRT_RTX)


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The two engines of a model."""

    vision: Engine
    decoder: Engine

    @property
    def native(self) -> bool:
        """True where our native library serves the custom ops."""
        return bool(self.decoder.native_nodes)


def load_engines(
    folder: Path,
    custom_nodes: Mapping[str, Mapping[str, int]],
    *,
    backend: str = ONNX_RUNTIME,
    builds: Mapping[str, EngineBuild] | None = None,
    parts: int = 1,
    native: bool | None = None,
    threads: int | None = None,
) -> Engines:
    """Load the engines under `folder`, or its graphs where ONNX Runtime runs them.

    Args:
        folder: a bundle, or one under construction.
        custom_nodes: how many nodes of each custom op each graph has, by graph.
        backend: who runs the engines, one of `BACKENDS`.
        builds: TensorRT: how each engine was built, by its name, as the bundle's manifest says.
        parts: TensorRT: engines that the decoder is built as.
        native: ONNX Runtime: True demands our native library, False leaves it out, None takes it if
            it is there.
        threads: ONNX Runtime: CPU threads of each engine; None is one for each core.

    Raises:
        BundleError: an engine or a graph cannot be loaded.
        UnsupportedEnvironment: this machine lacks what the engines need: the native library that is
            demanded, or a GPU and the TensorRT that they were built with.
        UsageError: TensorRT engines have no choice of library or threads.
    """
    if backend == ONNX_RUNTIME:
        return _load_graphs(folder, custom_nodes, native, threads)
    if backend not in BACKENDS:
        raise BundleError(
            f"{folder} is for the backend {backend!r}; known here: {', '.join(BACKENDS)}",
            hint="use the tc-export that made it",
        )
    if native is not None or threads is not None:
        raise UsageError(
            f"engines of {FLAVOURS[backend].title} have no choice of native library or threads",
            hint="leave out --native, --no-native and --threads",
        )
    builds = builds or {}
    wanted = {VISION, *decoder_names(parts)}
    if wanted != builds.keys():
        missing, other = sorted(wanted - builds.keys()), sorted(builds.keys() - wanted)
        raise BundleError(
            f"{folder} does not say what built its engines: missing are "
            f"{', '.join(missing) or 'none'}, unknown {', '.join(other) or 'none'}",
            hint="build the bundle again with `tc-export build`",
        )
    opened = open_tensorrt_engines(folder, FLAVOURS[backend], builds, custom_nodes)
    return Engines(vision=opened[VISION], decoder=opened[DECODER])


def _load_graphs(
    folder: Path,
    custom_nodes: Mapping[str, Mapping[str, int]],
    native: bool | None,
    threads: int | None,
) -> Engines:
    library = choose_native_library(native)

    def load(graph: str) -> Engine:
        engine = OrtEngine(folder / graph_path(graph), native_library=library, threads=threads)
        if library is not None:
            _check_served(graph, engine.native_nodes, custom_nodes.get(graph, {}))
        return engine

    return Engines(vision=load(VISION), decoder=load(DECODER))


def choose_native_library(native: bool | None) -> Path | None:
    """The library that serves ONNX Runtime; see `load_engines` for `native`.

    Raises:
        UnsupportedEnvironment: it is demanded, and is not here or does not serve ONNX Runtime.
    """
    if native is False:
        return None
    library = require_native_library() if native else find_native_library()
    if library is not None and library.has_onnxruntime_ops:
        return library.path
    if native:
        raise UnsupportedEnvironment(
            "the native library was built without ONNX Runtime's headers, and cannot serve it",
            hint="build it again with the headers, or leave out --native",
        )
    return None


def _check_served(graph: str, served: Mapping[str, int], expected: Mapping[str, int]) -> None:
    if dict(served) != dict(expected):
        raise UnsupportedEnvironment(
            f"the native library serves {dict(served)} nodes of the {graph} graph, which has "
            f"{dict(expected)}: the rest would silently run slower",
            hint="build the native library again, or use --no-native",
        )
