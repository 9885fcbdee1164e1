# SPDX-License-Identifier: Apache-2.0
"""A builder that writes files, and a runtime that opens them as their graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tc_export.device_build.finish import OnProgress, Tools
from tc_export.device_build.spec import EngineSpec
from tc_export.engine.interface import Engine
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.engine.tensorrt.build import EngineReport, EngineRequest


def exported_graph(tensorrt_graph: Path) -> Path:
    """The graph beside, which ONNX Runtime takes."""
    return tensorrt_graph.with_name(tensorrt_graph.name.replace(".tensorrt.", "."))


def report_of(request: EngineRequest, tensorrt: str) -> EngineReport:
    """What a builder would say that has made just what was asked for."""
    return EngineReport(
        tensorrt=tensorrt,
        layers=7,
        plugin_layers=dict(request.custom_nodes),
        layer_types={},
        precision=request.precision,
        few_bits=dict(request.few_bits),
        engine_bytes=request.engine.stat().st_size,
        seconds=1.0,
        peak_bytes=1,
    )


class FakeTools:
    """Builds files, and opens them as the graph in ONNX Runtime."""

    def __init__(self) -> None:
        self.built: list[EngineRequest] = []
        self.opened: list[Path] = []
        self.on_build: Callable[[int], None] = lambda count: None
        self.wrong: str | None = None

    def build(self, request: EngineRequest, on_progress: OnProgress) -> EngineReport:
        self.built.append(request)
        self.on_build(len(self.built))
        assert request.plugin_library is not None
        assert request.plugin_library.is_file()
        request.engine.write_text(f"built from {request.graph.name.partition('.')[0]}")
        on_progress(1, 1)
        return report_of(request, "TensorRT 10.3.0.26")

    def open(self, engine: Path, plugin_library: Path, spec: EngineSpec, /) -> Engine:
        assert engine.is_file()
        assert plugin_library.is_file()
        self.opened.append(engine)
        bundle = engine.parents[1]
        kind = Shifted if self.wrong and self.wrong in engine.name else OrtEngine
        return kind(exported_graph(bundle / spec.graph), threads=1)

    @property
    def tools(self) -> Tools:
        return Tools(build_engine=self.build, open_engine=self.open)


class Shifted(OrtEngine):
    """An engine that is wrong in one value."""

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = super()._run(feeds)
        name = next(iter(results))
        results[name] = results[name].copy()
        results[name].flat[5] += np.float16(0.3)
        return results
