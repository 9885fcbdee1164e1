# SPDX-License-Identifier: Apache-2.0
"""Build an engine from a graph, check that it is what was asked for, and put it in its place.

TensorRT runs in a process of its own (`builder`). The engine is written beside its place and
renamed when all checks have passed: plugin layers as many as the graph's custom nodes, and matrix
products in the precision that was asked for. Whatever goes wrong, nothing is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tc_export.contracts.shapes import ShapeRange
from tc_export.dtypes import DType
from tc_export.engine.tensorrt.builder.messages import Result, Task, error_from
from tc_export.engine.tensorrt.builder.process import Ended, descriptor, path_of, run_worker
from tc_export.engine.tensorrt.layer_listing import Realised, read_layers, summarise
from tc_export.errors import (
    CheckFailed,
    InputError,
    TcExportError,
    UnsupportedEnvironment,
    UsageError,
)
from tc_export.native import elf

WORKER = "tc_export.engine.tensorrt.builder.worker"
LAST_LINES = 6  # of what a worker printed, in a message
NAMED_LAYERS = 3  # of those in another precision, in a message

OnProgress = Callable[[float, float | None], None]
"""Called with (done, total)."""


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What to build.

    Attributes:
        flavour: which TensorRT.
        graph: an ONNX file, its weights beside it.
        engine: where the engine goes.
        plugin_library: serves the custom nodes; for this machine's processor.
        shapes: of every input.
        compute_capability: 89 for 8.9; None: of the GPU that is here.
        custom_nodes: how many of each op the graph has, each of which must become a plugin layer.
        precision: what the graph's matrix products are in. It is compared with what the builder
            made, and decides nothing: the graph does.
        few_bits: how many weights the graph holds in each format of four or eight bits.
            TensorRT-RTX must hold as many: one that it widened while building is read in full.
        timing_cache: a file that is read and written again; TensorRT alone has a use for it.
    """

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    graph: Path
    engine: Path
    shapes: Mapping[str, ShapeRange]
    precision: str
    plugin_library: Path | None = None
    compute_capability: int | None = None
    custom_nodes: Mapping[str, int] = field(default_factory=dict)
    few_bits: Mapping[str, int] = field(default_factory=dict)
    timing_cache: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What was built, by the builder's own account.

    Attributes:
        tensorrt: flavour and version.
        layers: of the engine, which are fewer than the graph's nodes.
        plugin_layers: by the name of their op.
        layer_types: layer type -> type of its output -> how many.
        precision: of all matrix products.
        few_bits: format of four or eight bits -> how many weights are held in it.
        engine_bytes: size of the file.
        seconds: of the whole build.
        peak_bytes: largest resident set of the process that built it.
    """

    tensorrt: str
    layers: int
    plugin_layers: dict[str, int]
    layer_types: dict[str, dict[str, int]]
    precision: str
    few_bits: dict[str, int]
    engine_bytes: int
    seconds: float
    peak_bytes: int


def build_engine(request: EngineRequest, on_progress: OnProgress) -> EngineReport:
    """Build the engine that `request` describes.

    Raises:
        UsageError: the shapes do not fit the graph.
        InputError: the graph is not there, or TensorRT cannot parse it.
        UnsupportedEnvironment: TensorRT, its version, the GPU or the plugin library is not what it
            takes.
        CheckFailed: the builder chose another precision.
        TcExportError: the builder died.
    """
    _check_files(request)
    start = time.perf_counter()
    partial = request.engine.with_name(f".{request.engine.name}.{os.getpid()}")
    try:
        with _job(request, partial) as job:
            result = _run(job, on_progress)
        realised = summarise(read_layers(result.layer_lines))
        _check_precision(request, result, realised)
        _check_few_bits(request, result, realised)
        partial.replace(request.engine)
    finally:
        partial.unlink(missing_ok=True)
    return EngineReport(
        tensorrt=result.version,
        layers=realised.layers,
        plugin_layers=dict(result.plugin_layers),
        layer_types=realised.by_type,
        precision=realised.precision,
        few_bits=realised.few_bits,
        engine_bytes=result.engine_bytes,
        seconds=round(time.perf_counter() - start, 3),
        peak_bytes=result.peak_bytes,
    )


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A task, the open files that go with it, and the real names of their paths in it."""

    task: Task
    descriptors: Sequence[int]
    names: Mapping[str, Path]


@contextlib.contextmanager
def _job(request: EngineRequest, partial: Path) -> Iterator[_Job]:
    """Open the files of `request`, the engine's as `partial`.

    The task holds no path but that of a timing cache: it is the same in any folder.
    """
    with contextlib.ExitStack() as stack:
        descriptors: list[int] = []
        names: dict[str, Path] = {}

        def opened(path: Path, flags: int = os.O_RDONLY) -> int:
            descriptors.append(stack.enter_context(descriptor(path, flags)))
            names[path_of(descriptors[-1])] = path
            return descriptors[-1]

        cache = request.timing_cache
        task = Task(
            flavour=request.flavour,
            graph=f"{path_of(opened(request.graph.parent))}/{request.graph.name}",
            engine=opened(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            plugin_library=None
            if request.plugin_library is None
            else path_of(opened(request.plugin_library)),
            shapes={
                name: (shape.smallest, shape.usual, shape.largest)
                for name, shape in request.shapes.items()
            },
            compute_capability=request.compute_capability,
            custom_nodes=dict(request.custom_nodes),
            timing_cache=None if cache is None else str(cache.resolve()),
        )
        yield _Job(task=task, descriptors=descriptors, names=names)


def _run(job: _Job, on_progress: OnProgress) -> Result:
    """Run the worker, and make of what it says a result or an error."""
    answers: dict[str, Any] = {}

    def on_line(line: str) -> None:
        message: dict[str, Any] = json.loads(line)
        if "progress" in message:
            on_progress(message["progress"], 1.0)
        answers.update(message)

    ended = run_worker(WORKER, job.task.to_json(), on_line, job.descriptors)
    if "result" in answers:
        return Result.from_json(answers["result"])
    raise _error(answers.get("error"), ended, job.names)


def _error(
    described: Mapping[str, Any] | None, ended: Ended, names: Mapping[str, Path]
) -> TcExportError | OSError:
    """What the worker said, or that it died; files have their own names again."""

    def named(text: str) -> str:
        for alias, path in names.items():
            text = text.replace(alias, str(path))
        return text

    error = _died(ended) if described is None else error_from(described)
    if isinstance(error, TcExportError):
        error.args = (named(f"{error}{_last_words(ended)}"),)
        error.hint = error.hint and named(error.hint)
    return error


def _died(ended: Ended) -> TcExportError:
    how = ended.signal_name or f"exit code {ended.returncode}"
    if how == "SIGKILL":
        return UnsupportedEnvironment(
            "the builder's process was killed (SIGKILL): most likely memory ran out",
            hint="tc-export plan says how much a build takes; close other programs, or build on a "
            "machine with more",
        )
    return TcExportError(
        f"the builder's process died ({how}) before there was an engine",
        hint="the same command again tells whether it always does; another version of TensorRT "
        "may not",
    )


def _last_words(ended: Ended) -> str:
    """What the worker and its libraries printed last: plugins say there what they refuse."""
    lines = [line for line in ended.said.splitlines() if line.strip()]
    return "".join(f"\n  {line}" for line in lines[-LAST_LINES:])


def _check_files(request: EngineRequest) -> None:
    """See that the files are there, and that this machine can load the library."""
    if request.timing_cache is not None and request.flavour == "tensorrt-rtx":
        raise UsageError("TensorRT-RTX times nothing while it builds: it has no timing cache")
    if not request.graph.is_file():
        raise InputError(f"there is no graph at {request.graph}")
    library = request.plugin_library
    if library is None:
        return
    if not library.is_file():
        raise UnsupportedEnvironment(
            f"there is no plugin library at {library}",
            hint="tc-export plugins build makes it for a target",
        )
    with library.open("rb") as file:
        machine = elf.architecture(file.read(elf.HEADER_BYTES))
    if machine is None:
        raise UnsupportedEnvironment(f"{library} is not a shared library")
    if machine != platform.machine():
        raise UnsupportedEnvironment(
            f"{library} is for {machine}, and this machine is {platform.machine()}",
            hint="build the engine on the device, or the library for this machine",
        )


def _check_precision(request: EngineRequest, result: Result, realised: Realised) -> None:
    if not realised.products:
        raise CheckFailed(
            f"{result.version} lists no layer that multiplies matrices, among {realised.layers}: "
            "what precision it chose cannot be told"
        )
    # Products of eight bits on both sides; how many there are is counted by their weights.
    allowed = {request.precision, *({*request.few_bits} & {DType.INT8, DType.FP8})}
    if not {*realised.products} <= allowed:
        others = [
            f"\n  {dtype}: {len(names)} layers, such as {', '.join(names[:NAMED_LAYERS])}"
            for dtype, names in realised.products.items()
            if dtype not in allowed
        ]
        raise CheckFailed(
            f"{request.engine.name} was asked for in {request.precision}, and {result.version} "
            f"made matrix products in {realised.precision}:{''.join(others)}",
            hint="networks are strongly typed: look at the types in the graph",
        )


def _check_few_bits(request: EngineRequest, result: Result, realised: Realised) -> None:
    """How standard TensorRT lists such weights was never seen, and is not judged."""
    for dtype, count in request.few_bits.items():
        found = realised.few_bits.get(dtype, 0)
        if request.flavour == "tensorrt-rtx" and found < count:
            raise CheckFailed(
                f"{request.engine.name} has {count} weights in {dtype}, and {result.version} keeps "
                f"{found} of them so: the others were widened while building",
                hint="another group_size in the recipe may be one that it multiplies by",
            )
