# SPDX-License-Identifier: Apache-2.0
"""Open the two engines of a bundle's folder, with or without our native library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tc_export.engine.interface import Engine
from tc_export.engine.native_library import find_native_library, require_native_library
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.errors import EnvironmentLacks

ONNX_RUNTIME = "onnxruntime"
VISION = "vision"
DECODER = "decoder"
MODEL_FILE = "model.onnx"
EMBEDDING_FILE = "embedding.safetensors"


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
    native: bool | None = None,
    threads: int | None = None,
) -> Engines:
    """Load the graphs under `folder` into ONNX Runtime.

    Args:
        folder: a bundle, or one under construction.
        custom_nodes: how many nodes of each custom op each graph has, by graph.
        native: True demands our native library, False leaves it out, None takes it if it is there.
        threads: CPU threads of each engine; None is one for each core.

    Raises:
        BundleError: a graph cannot be loaded.
        EnvironmentLacks: the native library is demanded and not there, or does not serve every
            custom node.
    """
    library = _native_library(native)

    def load(graph: str) -> Engine:
        engine = OrtEngine(folder / graph / MODEL_FILE, native_library=library, threads=threads)
        if library is not None:
            _check_served(graph, engine.native_nodes, custom_nodes.get(graph, {}))
        return engine

    return Engines(vision=load(VISION), decoder=load(DECODER))


def _native_library(native: bool | None) -> Path | None:
    if native is False:
        return None
    library = require_native_library() if native else find_native_library()
    if library is not None and library.has_onnxruntime_ops:
        return library.path
    if native:
        raise EnvironmentLacks(
            "the native library was built without ONNX Runtime's headers, and cannot serve it",
            hint="build it again with the headers, or leave out --native",
        )
    return None


def _check_served(graph: str, served: Mapping[str, int], expected: Mapping[str, int]) -> None:
    if dict(served) != dict(expected):
        raise EnvironmentLacks(
            f"the native library serves {dict(served)} nodes of the {graph} graph, which has "
            f"{dict(expected)}: the rest would silently run slower",
            hint="build the native library again, or use --no-native",
        )
