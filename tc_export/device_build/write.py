# SPDX-License-Identifier: Apache-2.0
"""What a host without the device puts into a bundle: spec, script and hashes."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tc_export.bundle.files import walk_files
from tc_export.contracts.shapes import ShapeRange
from tc_export.device_build.spec import (
    FOLDER,
    SUMS,
    DeviceBuildSpec,
    EngineSpec,
    Range,
)
from tc_export.digests import Digests
from tc_export.errors import TcExportError
from tc_export.golden.files import GoldenCall

_STATIC_FILES = ("finish.sh", "compile_plugins.sh", "exports.map", "compare.awk")
_VARIABLES = {
    "--minShapes": "min_shapes",
    "--optShapes": "opt_shapes",
    "--maxShapes": "max_shapes",
}


@dataclass(frozen=True, kw_only=True)
class PendingEngine:
    """An engine that the device is to build. Paths are relative to the bundle."""

    graph: str
    engine: str
    precision: str
    custom_nodes: Mapping[str, int]
    shapes: Mapping[str, ShapeRange]
    golden: GoldenCall


@dataclass(frozen=True, kw_only=True)
class PendingBuild:
    """What a device is to build, and which device that is.

    Attributes:
        target: the device's name.
        release: name of the device's software.
        cuda: its CUDA version.
        tensorrt: version that the graphs were made for, major and minor.
        architecture: the device's processor, as `uname -m` says it.
        sm: the device's compute capability.
        plugin_library: its path, relative to the bundle.
        plugin_sources: folder in the bundle that the device compiles it from; None where the bundle
            has the library itself.
        engines: by graph.
    """

    target: str
    release: str
    cuda: str
    tensorrt: str
    architecture: str
    sm: int
    plugin_library: str
    plugin_sources: str | None
    engines: Mapping[str, PendingEngine]


def write_finish(folder: Path, pending: PendingBuild, digests: Digests | None = None) -> None:
    """Write `folder`/finish, once graphs, plugins and golden data are in the bundle `folder`.

    `digests` are the hashes of files that are known already.

    Raises:
        TcExportError: a graph, the library or golden data is not there, or does not fit the shapes.
    """
    (folder / FOLDER).mkdir()
    spec = DeviceBuildSpec(
        target=pending.target,
        release=pending.release,
        cuda=pending.cuda,
        tensorrt=pending.tensorrt,
        architecture=pending.architecture,
        sm=pending.sm,
        plugin_library=pending.plugin_library,
        plugin_sources=pending.plugin_sources,
        graphs={graph: _engine_spec(engine) for graph, engine in pending.engines.items()},
    )
    missing = [path for path in _needed_paths(spec) if not (folder / path).exists()]
    if missing:
        raise TcExportError(f"the bundle has no {', '.join(missing)}")
    spec.write(folder)
    for name in _STATIC_FILES:
        shutil.copyfile(Path(__file__).with_name(name), folder / FOLDER / name)
    _write_settings(folder, spec)
    _write_sums(folder, spec, digests or Digests())


def _needed_paths(spec: DeviceBuildSpec) -> list[str]:
    graphs = [engine.graph for engine in spec.graphs.values()]
    return [spec.plugin_sources or spec.plugin_library, *graphs, *_golden_files(spec)]


def _golden_files(spec: DeviceBuildSpec) -> list[str]:
    return [
        tensor.file
        for engine in spec.graphs.values()
        for tensor in (*engine.golden.inputs.values(), *engine.golden.outputs.values())
    ]


def _engine_spec(engine: PendingEngine) -> EngineSpec:
    """One graph's part of the spec, once its golden call is seen to fit the shapes."""
    for name, tensor in engine.golden.inputs.items():
        _check_inside(name, tensor.shape, engine.shapes)
    return EngineSpec(
        graph=engine.graph,
        engine=engine.engine,
        precision=engine.precision,
        custom_nodes=dict(engine.custom_nodes),
        shapes={
            tensor: Range(smallest=x.smallest, usual=x.usual, largest=x.largest)
            for tensor, x in engine.shapes.items()
        },
        golden=engine.golden,
    )


def _check_inside(name: str, shape: tuple[int, ...], shapes: Mapping[str, ShapeRange]) -> None:
    if name not in shapes:
        raise TcExportError(f"golden input {name!r} is none of the graph's: {', '.join(shapes)}")
    allowed = shapes[name]
    limits = zip(allowed.smallest, shape, allowed.largest, strict=True)
    if not all(low <= length <= high for low, length, high in limits):
        raise TcExportError(f"golden {name} is {shape}, and the engine takes {allowed}")


def _write_settings(folder: Path, spec: DeviceBuildSpec) -> None:
    """The spec as shell variables, for `finish.sh`."""
    machine = {
        "target": spec.target,
        "release": spec.release,
        "cuda": spec.cuda,
        "tensorrt": spec.tensorrt,
        "architecture": spec.architecture,
        "sm": str(spec.sm),
        "plugin": spec.plugin_library,
        "plugin_sources": spec.plugin_sources or "",
        "graphs": " ".join(spec.graphs),
    }
    _write_variables(folder / FOLDER / "machine.settings", machine)
    for graph, engine in spec.graphs.items():
        ((output, golden),) = engine.golden.outputs.items()
        flags = trtexec_flags(engine.shape_ranges)
        call = {tensor: engine.call_shape(tensor) for tensor in engine.shapes}
        values = {
            "graph": engine.graph,
            "engine": engine.engine,
            "needs_plugin": "yes" if engine.custom_nodes else "",
            **{variable: flags[flag] for flag, variable in _VARIABLES.items()},
            "shapes": ",".join(f"{x}:{'x'.join(map(str, shape))}" for x, shape in call.items()),
            "inputs": ",".join(f"{x}:{tensor.file}" for x, tensor in engine.golden.inputs.items()),
            "output": output,
            "golden": golden.file,
            "tolerance": repr(golden.tolerance),
        }
        _write_variables(folder / FOLDER / f"{graph}.settings", values)


def trtexec_flags(shapes: Mapping[str, ShapeRange]) -> dict[str, str]:
    """The shapes as trtexec takes them: `--minShapes`, `--optShapes`, `--maxShapes`."""

    def spell(which: str) -> str:
        return ",".join(
            f"{name}:{'x'.join(map(str, getattr(shape, which)))}" for name, shape in shapes.items()
        )

    return {
        "--minShapes": spell("smallest"),
        "--optShapes": spell("usual"),
        "--maxShapes": spell("largest"),
    }


def _write_variables(path: Path, values: Mapping[str, str]) -> None:
    lines = [f"{name}={shlex.quote(value)}\n" for name, value in values.items()]
    path.write_text("".join(lines), encoding="utf-8")


def _write_sums(folder: Path, spec: DeviceBuildSpec, digests: Digests) -> None:
    """The hashes of all that the script uses, in `sha256sum`'s own format."""
    used = [*_graph_files(folder, spec), *_plugin_files(folder, spec), *_golden_files(spec)]
    used += [f"{FOLDER}/{name}" for name in walk_files(folder / FOLDER)]
    lines = [f"{digests.sha256(folder / path)}  {path}\n" for path in used]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _graph_files(folder: Path, spec: DeviceBuildSpec) -> Iterable[str]:
    """The graphs and the weights beside them."""
    parents = {str(Path(engine.graph).parent) for engine in spec.graphs.values()}
    for parent in sorted(parents):
        yield from walk_files(folder / parent, f"{parent}/")


def _plugin_files(folder: Path, spec: DeviceBuildSpec) -> Iterable[str]:
    """The library, or what it is compiled from."""
    if spec.plugin_sources is None:
        return [spec.plugin_library]
    return walk_files(folder / spec.plugin_sources, f"{spec.plugin_sources}/")
