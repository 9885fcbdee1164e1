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
from pathlib import Path

from packaging.version import InvalidVersion, Version

from tc_export.bundle import EngineBuild
from tc_export.bundle.layout import PLUGIN_FOLDER, engine_path, plugin_path
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.contracts.parts import decoder_names
from tc_export.engine.interface import Engine
from tc_export.engine.tensorrt.bindings import import_tensorrt
from tc_export.engine.tensorrt.flavours import Flavour
from tc_export.engine.tensorrt.parted import TrtPartedEngine
from tc_export.engine.tensorrt.run import TrtEngine, open_runtime
from tc_export.errors import BundleError, UnsupportedEnvironment


def open_tensorrt_engines(
    folder: Path,
    flavour: Flavour,
    builds: Mapping[str, EngineBuild],
    custom_nodes: Mapping[str, Mapping[str, int]],
) -> dict[str, Engine]:
    """Load the engines in `builds`; those of a decoder's parts run as one.

    Returns:
        The engine of each graph.

    Raises:
        BundleError: an engine is missing or damaged.
        UnsupportedEnvironment: this machine lacks the GPU, the version of TensorRT, the CUDA
            bindings or the plugins that the engines need.
    """
    version = import_tensorrt(flavour).__version__
    for graph, build in builds.items():
        _check_version(graph, build, flavour.title, version)
    runtime = open_runtime(flavour)
    for graph, build in builds.items():
        _check_gpu(graph, build, runtime.sm)
    if any(custom_nodes.values()):
        runtime.load_plugins(_find_plugins(folder, runtime.sm))
    opened = {
        name: TrtEngine(folder / engine_path(name), runtime, native_nodes=custom_nodes.get(name))
        for name in builds
    }
    if DECODER in opened:
        return dict(opened)
    parts = [opened[name] for name in decoder_names(len(opened) - 1)]
    try:
        return {VISION: opened[VISION], DECODER: TrtPartedEngine(parts, runtime)}
    except ValueError as error:
        raise BundleError(
            f"the decoder's engines in {folder} are not parts of one build: {error}",
            hint="build the bundle again with `tc-export build`",
        ) from error


def _check_version(graph: str, build: EngineBuild, name: str, here: str) -> None:
    built_name, _, built_version = build.builder.rpartition(" ")
    try:
        same = Version(built_version).release[:2] == Version(here).release[:2]
    except InvalidVersion as error:
        raise BundleError(
            f"the {graph} engine was built with {build.builder!r}, which is no name and version",
            hint="build the bundle again with `tc-export build`",
        ) from error
    if built_name != name or not same:
        raise UnsupportedEnvironment(
            f"the {graph} engine was built with {build.builder}, and here is {name} {here}: an "
            "engine runs on the version that built it",
            hint=f"install {build.builder}, or build the bundle again with {name} {here}",
        )


def _check_gpu(graph: str, build: EngineBuild, sm: int) -> None:
    if build.sm not in (None, sm):
        raise UnsupportedEnvironment(
            f"the {graph} engine was built for GPUs of SM {build.sm}, and the one here is SM {sm}",
            hint="build the bundle for a target of this GPU: tc-export targets lists them",
        )


def _find_plugins(folder: Path, sm: int) -> Path:
    """The plugin library for this machine, among those in the bundle."""
    path = folder / plugin_path(platform.machine(), sm)
    if not path.is_file():
        present = sorted(file.parent.name for file in folder.glob(f"{PLUGIN_FOLDER}/*/*.so"))
        raise UnsupportedEnvironment(
            f"this machine needs plugins for {path.parent.name}; the bundle has "
            f"{', '.join(present) or 'none'}",
            hint="build the bundle for a target of this machine: tc-export targets lists them",
        )
    return path
