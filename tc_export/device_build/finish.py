# SPDX-License-Identifier: Apache-2.0
"""Complete a bundle on its device: build the engines, judge them, write them into the manifest.

Where the bundle has the plugins' sources, their library is compiled first, and recorded as well.
The bundle changes in one step, at the end. A kill before that leaves it as it was, pending and
whole, and the next run takes up what was built by then. Engines that `finish.sh` has built are
taken, and judged once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tc_export.bundle import (
    BundleSpec,
    EngineBuild,
    EngineRecord,
    EngineState,
    Manifest,
    StageRecord,
    StageResults,
    Staging,
    locate,
    open_bundle,
    open_staging,
    verify,
)
from tc_export.bundle.layout import engine_stage, is_weights
from tc_export.bundle.manifest import digest_of
from tc_export.device_build.judge import judge
from tc_export.device_build.machine import Machine, check_library, check_machine
from tc_export.device_build.plugins import compile_plugins
from tc_export.device_build.script_products import ScriptProducts, set_aside
from tc_export.device_build.spec import SPEC_FILE, DeviceBuildSpec, EngineSpec, read_spec
from tc_export.engine.interface import Engine
from tc_export.engine.tensorrt.build import EngineReport, EngineRequest, build_engine
from tc_export.engine.tensorrt.flavours import FLAVOURS, TENSORRT
from tc_export.engine.tensorrt.run import TrtEngine, open_runtime
from tc_export.errors import BundleError, UsageError

PLUGIN_STAGE = "plugin_library"  # beside the host's `plugins`, which has put its sources there

OnProgress = Callable[[float, float | None], None]


class OpenEngine(Protocol):
    """Opens a built engine on this machine's GPU, with the plugin library in the registry."""

    def __call__(self, engine: Path, plugin_library: Path, spec: EngineSpec, /) -> Engine:
        """Open the engine file."""


def open_on_gpu(engine: Path, plugin_library: Path, spec: EngineSpec, /) -> Engine:
    """Open an engine on the first GPU of this machine.

    Raises:
        BundleError: TensorRT refuses the file.
        UnsupportedEnvironment: no GPU, no TensorRT, or the plugin library does not load.
    """
    runtime = open_runtime(FLAVOURS[TENSORRT])
    if spec.custom_nodes:
        runtime.load_plugins(plugin_library)
    return TrtEngine(engine, runtime, native_nodes=spec.custom_nodes)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What does the work on the device, and how it is shown."""

    compile_plugins: Callable[[Path, str], None] = compile_plugins
    build_engine: Callable[[EngineRequest, OnProgress], EngineReport] = build_engine
    open_engine: OpenEngine = open_on_gpu
    on_step: Callable[[str], None] = lambda phrase: None
    on_progress: OnProgress = lambda done, total: None


def finish(bundle: Path, machine: Machine, tools: Tools) -> Manifest:
    """Build and judge what is pending in `bundle`; return the manifest that then holds.

    A bundle whose engines are there already is judged once more, and stays as it is.

    Raises:
        BundleError: it is none, is damaged, or has nothing that could be finished.
        UnsupportedEnvironment: this is not the machine that it was made for.
        CheckFailed: an engine does not compute what the model computes; nothing was changed.
    """
    bundle = bundle.resolve()
    manifest = open_bundle(bundle)
    spec = read_spec(bundle)
    check_machine(spec, machine, bundle)
    if manifest.engine is None or manifest.engine.state is EngineState.PENDING:
        with (
            set_aside(bundle, spec) as products,
            open_staging(bundle, manifest.weights_asked) as staging,
        ):
            return _Finish(staging, spec, machine, tools, products).run()
    for graph, wanted in spec.graphs.items():
        tools.on_step(f"compare the {graph} engine with the golden data")
        library = locate(bundle, spec.plugin_library)
        engine = tools.open_engine(locate(bundle, wanted.engine), library, wanted)
        judge(bundle, graph, wanted, engine)
    return manifest


class _Finish:
    """The bundle under construction beside the pending one."""

    def __init__(
        self,
        staging: Staging,
        spec: DeviceBuildSpec,
        machine: Machine,
        tools: Tools,
        products: ScriptProducts,
    ) -> None:
        self._staging = staging
        self._spec = spec
        self._machine = machine
        self._tools = tools
        self._products = products

    def run(self) -> Manifest:
        published = self._staging.published
        if published is None:
            raise UsageError(f"{self._staging.output} was removed in the meantime")
        graphs = {engine_stage(graph): graph for graph in self._spec.graphs}
        self._tools.on_step("check the bundle's files")
        records = {
            name: self._take_over(name, record)
            for name, record in published.stages.items()
            if name not in (*graphs, PLUGIN_STAGE)
        }
        if self._spec.plugin_sources is not None:
            records[PLUGIN_STAGE] = self._finish_plugins()
        for stage, graph in graphs.items():
            records[stage] = self._finish_engine(stage, graph, self._spec.graphs[graph])
        bundle_spec = BundleSpec(**{x: getattr(published, x) for x in BundleSpec.model_fields})
        manifest = Manifest.assemble(bundle_spec, records)
        self._staging.publish(manifest)
        return manifest

    def _take_over(self, name: str, record: StageRecord) -> StageRecord:
        """Link what the host has made, once its hashes hold."""
        taken = self._staging.reuse(name, record.key, tuple(record.files))
        if taken is None:
            problems = "\n".join(f"  {problem}" for problem in verify(self._staging.output))
            raise BundleError(
                f"the bundle {self._staging.output} is damaged:\n{problems}",
                hint="get it again from where it was built",
            )
        self._staging.keep(name, taken)
        return taken

    def _finish_plugins(self) -> StageRecord:
        """The library: of a run that was killed, of `finish.sh`, or compiled now."""

        def make() -> StageResults:
            folder = self._staging.bundle
            library = folder / self._spec.plugin_library
            if self._products.take_library(self._spec, folder):
                self._tools.on_step("take the plugin library that finish.sh has compiled")
            else:
                self._tools.on_step("compile the plugins; this takes minutes")
                library.parent.mkdir(parents=True, exist_ok=True)
                self._tools.compile_plugins(folder, self._spec.plugin_library)
            check_library(self._spec, library)
            return StageResults()

        key = digest_of({"stage": PLUGIN_STAGE, "sm": self._spec.sm, "sources": self._plugins()})
        return self._make(PLUGIN_STAGE, key, self._spec.plugin_library, "the plugin library", make)

    def _finish_engine(self, stage: str, graph: str, spec: EngineSpec) -> StageRecord:
        def make() -> StageResults:
            built = self._take(graph, spec) or self._build(graph, spec)
            self._judge(graph, spec)
            return StageResults(
                precision_realised={graph: built.precision},
                engine_builds={graph: built},
                engine=EngineRecord(backend=TENSORRT, state=EngineState.BUILT),
            )

        return self._make(stage, self._key(stage, spec), spec.engine, f"the {graph} engine", make)

    def _make(
        self, stage: str, key: str, output: str, phrase: str, make: Callable[[], StageResults]
    ) -> StageRecord:
        """Have `make` write the output of a stage, unless a run before this one has."""
        staging, start = self._staging, time.perf_counter()
        record = staging.reuse(stage, key, (output,))
        if record is not None:
            self._tools.on_step(f"{phrase} was made and checked before")
        else:
            try:
                results = make()
                files = staging.hash_outputs((output,))
            except BaseException:
                staging.discard(stage, (output,))
                raise
            seconds = round(time.perf_counter() - start, 3)
            record = StageRecord(key=key, seconds=seconds, files=files, results=results)
        staging.keep(stage, record)
        return record

    def _judge(self, graph: str, spec: EngineSpec) -> None:
        self._tools.on_step(f"compare the {graph} engine with the golden data")
        folder = self._staging.bundle
        library = folder / self._spec.plugin_library
        judge(folder, graph, spec, self._tools.open_engine(folder / spec.engine, library, spec))

    def _key(self, stage: str, spec: EngineSpec) -> str:
        """Hash of what the engine depends on: spec, graph, weights, plugins and TensorRT."""
        weights = {path: sha256 for path, sha256 in self._published().items() if is_weights(path)}
        sources = {**self._hashes(SPEC_FILE, spec.graph), **weights, **self._plugins()}
        return digest_of({"stage": stage, "files": sources, "tensorrt": self._machine.tensorrt})

    def _plugins(self) -> dict[str, str]:
        """The hashes of what the host has sent: the plugin library, or its sources."""
        return self._hashes(self._spec.plugin_sources or self._spec.plugin_library)

    def _hashes(self, *places: str) -> dict[str, str]:
        """The hashes of the bundle's files that are, or lie below, one of these places."""
        return {
            path: sha256
            for path, sha256 in self._published().items()
            if any(path == place or path.startswith(f"{place}/") for place in places)
        }

    def _published(self) -> dict[str, str]:
        """The hash of every file of the bundle as it was sent."""
        published = self._staging.published
        assert published is not None
        return {path: record.sha256 for path, record in published.files.items()}

    def _take(self, graph: str, spec: EngineSpec) -> EngineBuild | None:
        """The engine that `finish.sh` has built, if it has."""
        layers = self._products.take(spec.engine, self._staging.bundle)
        if layers is None:
            return None
        self._tools.on_step(f"take the {graph} engine that finish.sh has built")
        return EngineBuild(
            builder=f"TensorRT {self._machine.tensorrt}",
            sm=self._machine.sm,
            # The network is strongly typed, and no function could stand in for a plugin.
            precision=spec.precision,
            layers=layers,
            plugin_layers=spec.custom_nodes,
        )

    def _build(self, graph: str, spec: EngineSpec) -> EngineBuild:
        self._tools.on_step(f"build the {graph} engine")
        folder = self._staging.bundle
        engine = folder / spec.engine
        engine.parent.mkdir(parents=True, exist_ok=True)
        report = self._tools.build_engine(
            EngineRequest(
                flavour="tensorrt",
                graph=folder / spec.graph,
                engine=engine,
                shapes=spec.shape_ranges,
                precision=spec.precision,
                plugin_library=folder / self._spec.plugin_library,
                compute_capability=None,
                custom_nodes=spec.custom_nodes,
                timing_cache=self._products.timing_cache,
            ),
            self._tools.on_progress,
        )
        return EngineBuild(
            builder=report.tensorrt,
            sm=self._machine.sm,
            precision=report.precision,
            layers=report.layers,
            plugin_layers=report.plugin_layers,
            few_bits=report.few_bits,
        )
