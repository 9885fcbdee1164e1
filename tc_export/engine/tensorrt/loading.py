# SPDX-License-Identifier: Apache-2.0
"""Open a bundle's TensorRT engines, once it is clear that they can run here.

A serialised engine runs on the version that built it and on the GPU that it was built for. Major
and minor version are compared before anything is loaded; TensorRT itself may still refuse another
patch release, and is quoted then. Our plugins travel in the bundle, so they are always those that
the engine was built with.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from tc_export.bundle.layout import PLUGIN_FOLDER, engine_path, plugin_path
from tc_export.engine.tensorrt.cuda import open_cuda
from tc_export.engine.tensorrt.flavours import FLAVOURS
from tc_export.engine.tensorrt.run import TrtEngine
from tc_export.engine.tensorrt.runtime import TensorRt, import_tensorrt
from tc_export.errors import BundleError, EnvironmentLacks


@dataclass(frozen=True, kw_only=True)
class EngineOrigin:
    """What one engine was built with and for, as the bundle's manifest says."""

    builder: str  # name and version, as in `TensorRT 10.13.3.9`
    sm: int | None  # None: for any that this version runs on


def open_tensorrt_engines(
    folder: Path,
    backend: str,
    origins: Mapping[str, EngineOrigin],
    custom_nodes: Mapping[str, Mapping[str, int]],
) -> dict[str, TrtEngine]:
    """Load the engine of each graph in `origins`.

    Raises:
        BundleError: an engine is missing or damaged.
        EnvironmentLacks: this machine lacks the GPU, the version of TensorRT, the CUDA bindings or
            the plugins that the engines need.
    """
    module = import_tensorrt(backend)
    for graph, origin in origins.items():
        _check_version(graph, origin, FLAVOURS[backend].title, module.__version__)
    tensorrt = TensorRt(backend, module, open_cuda())
    for graph, origin in origins.items():
        _check_gpu(graph, origin, tensorrt.sm)
    if any(custom_nodes.values()):
        tensorrt.load_plugins(_find_plugins(folder, tensorrt.sm))
    return {
        graph: TrtEngine(
            folder / engine_path(graph), tensorrt, native_nodes=custom_nodes.get(graph)
        )
        for graph in origins
    }


def _check_version(graph: str, origin: EngineOrigin, name: str, here: str) -> None:
    built_name, _, built_version = origin.builder.rpartition(" ")
    try:
        same = Version(built_version).release[:2] == Version(here).release[:2]
    except InvalidVersion as error:
        raise BundleError(
            f"the {graph} engine was built with {origin.builder!r}, which is no name and version",
            hint="build the bundle again with `tc-export build`",
        ) from error
    if built_name != name or not same:
        raise EnvironmentLacks(
            f"the {graph} engine was built with {origin.builder}, and here is {name} {here}: an "
            "engine runs on the version that built it",
            hint=f"install {origin.builder}, or build the bundle again with {name} {here}",
        )


def _check_gpu(graph: str, origin: EngineOrigin, sm: int) -> None:
    if origin.sm not in (None, sm):
        raise EnvironmentLacks(
            f"the {graph} engine was built for GPUs of SM {origin.sm}, and the one here is SM {sm}",
            hint="build the bundle for a target of this GPU: tc-export targets lists them",
        )


def _find_plugins(folder: Path, sm: int) -> Path:
    """The plugin library for this machine, among those in the bundle."""
    path = folder / plugin_path(platform.machine(), sm)
    if not path.is_file():
        present = sorted(file.parent.name for file in folder.glob(f"{PLUGIN_FOLDER}/*/*.so"))
        raise EnvironmentLacks(
            f"this machine needs plugins for {path.parent.name}; the bundle has "
            f"{', '.join(present) or 'none'}",
            hint="build the bundle for a target of this machine: tc-export targets lists them",
        )
    return path
