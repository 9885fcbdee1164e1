# SPDX-License-Identifier: Apache-2.0
"""What a host without the device puts into a bundle: plan, golden data, script and hashes."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tc_export.bundle import Digests
from tc_export.bundle.files import walk_files
from tc_export.contracts.shapes import ShapeRange
from tc_export.device_build.golden import Golden
from tc_export.device_build.instructions import (
    FOLDER,
    SUMS,
    FinishPlan,
    GoldenOutput,
    GoldenTensor,
    GraphPlan,
    Range,
)
from tc_export.dtypes import DType
from tc_export.errors import TcExportError

SCRIPT = f"{FOLDER}/finish.sh"
_STATIC_FILES = ("finish.sh", "compare.awk")
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
    golden: Golden


def write_finish(
    folder: Path,
    engines: Mapping[str, PendingEngine],
    *,
    target: str,
    tensorrt: str,
    architecture: str,
    sm: int,
    plugin_library: str,
    digests: Digests | None = None,
) -> FinishPlan:
    """Write `folder`/finish, once graphs and plugins are in the bundle `folder`.

    Args:
        folder: the bundle under construction.
        engines: what is pending, by graph.
        target: the device's name.
        tensorrt: version that the graphs were made for, major and minor.
        architecture: the device's processor, as `uname -m` says it.
        sm: the device's compute capability.
        plugin_library: its path, relative to the bundle.
        digests: hashes that are known already.

    Raises:
        TcExportError: a graph or the library is not there, or golden data does not fit the shapes.
    """
    (folder / FOLDER).mkdir()
    plan = FinishPlan(
        target=target,
        tensorrt=tensorrt,
        architecture=architecture,
        sm=sm,
        plugin_library=plugin_library,
        graphs={name: _plan_graph(folder, name, engine) for name, engine in engines.items()},
    )
    missing = [path for path in _needed_files(plan) if not (folder / path).is_file()]
    if missing:
        raise TcExportError(f"the bundle has no {', '.join(missing)}")
    plan.write(folder)
    for name in _STATIC_FILES:
        shutil.copyfile(Path(__file__).with_name(name), folder / FOLDER / name)
    _write_settings(folder, plan)
    _write_sums(folder, plan, digests or Digests())
    return plan


def _needed_files(plan: FinishPlan) -> list[str]:
    return [plan.plugin_library, *(graph.graph for graph in plan.graphs.values())]


def _plan_graph(folder: Path, name: str, engine: PendingEngine) -> GraphPlan:
    """Write the golden files of one graph, and say where they are."""
    (folder / FOLDER / "golden" / name).mkdir(parents=True)
    inputs = {}
    for tensor, values in engine.golden.inputs.items():
        _check_inside(tensor, tuple(values.shape), engine.shapes)
        file = f"{FOLDER}/golden/{name}/{tensor}.bin"
        (folder / file).write_bytes(values.tobytes())
        dtype = str(DType.from_numpy(values.dtype))
        inputs[tensor] = GoldenTensor.model_validate(
            {"file": file, "dtype": dtype, "shape": tuple(values.shape)}
        )
    outputs = {}
    for tensor, (expected, tolerance) in engine.golden.outputs.items():
        file = f"{FOLDER}/golden/{name}/{tensor}.bin"
        (folder / file).write_bytes(np.ascontiguousarray(expected, "<f4").tobytes())
        outputs[tensor] = GoldenOutput(
            file=file, dtype="float32", shape=expected.shape, tolerance=tolerance
        )
    return GraphPlan(
        graph=engine.graph,
        engine=engine.engine,
        precision=engine.precision,
        custom_nodes=dict(engine.custom_nodes),
        shapes={
            tensor: Range(smallest=x.smallest, usual=x.usual, largest=x.largest)
            for tensor, x in engine.shapes.items()
        },
        golden_inputs=inputs,
        golden_outputs=outputs,
    )


def _check_inside(name: str, shape: tuple[int, ...], shapes: Mapping[str, ShapeRange]) -> None:
    if name not in shapes:
        raise TcExportError(f"golden input {name!r} is none of the graph's: {', '.join(shapes)}")
    allowed = shapes[name]
    limits = zip(allowed.smallest, shape, allowed.largest, strict=True)
    if not all(low <= length <= high for low, length, high in limits):
        raise TcExportError(f"golden {name} is {shape}, and the engine takes {allowed}")


def _write_settings(folder: Path, plan: FinishPlan) -> None:
    """The plan as shell variables, for `finish.sh`."""
    machine = {
        "target": plan.target,
        "tensorrt": plan.tensorrt,
        "architecture": plan.architecture,
        "plugin": plan.plugin_library,
        "graphs": " ".join(plan.graphs),
    }
    _write_variables(folder / FOLDER / "machine.settings", machine)
    for name, graph in plan.graphs.items():
        ((output, golden),) = graph.golden_outputs.items()
        flags = trtexec_flags(graph.shape_ranges)
        call = {tensor: graph.call_shape(tensor) for tensor in graph.shapes}
        values = {
            "graph": graph.graph,
            "engine": graph.engine,
            "needs_plugin": "yes" if graph.custom_nodes else "",
            **{variable: flags[flag] for flag, variable in _VARIABLES.items()},
            "shapes": ",".join(f"{x}:{'x'.join(map(str, shape))}" for x, shape in call.items()),
            "inputs": ",".join(f"{x}:{tensor.file}" for x, tensor in graph.golden_inputs.items()),
            "output": output,
            "golden": golden.file,
            "tolerance": repr(golden.tolerance),
        }
        _write_variables(folder / FOLDER / f"{name}.settings", values)


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


def _write_sums(folder: Path, plan: FinishPlan, digests: Digests) -> None:
    """The hashes of all that the script uses, in `sha256sum`'s own format."""
    used = [*_graph_files(folder, plan), plan.plugin_library]
    used += [f"{FOLDER}/{name}" for name in walk_files(folder / FOLDER)]
    lines = [f"{digests.sha256(folder / path)}  {path}\n" for path in used]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def _graph_files(folder: Path, plan: FinishPlan) -> Iterable[str]:
    """The graphs and the weights beside them."""
    parents = {str(Path(graph.graph).parent) for graph in plan.graphs.values()}
    for parent in sorted(parents):
        yield from walk_files(folder / parent, f"{parent}/")
