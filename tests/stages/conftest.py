# SPDX-License-Identifier: Apache-2.0
"""Builds of a small checkpoint for devices; the compiler and TensorRT are stood in for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tc_export.bundle import Manifest
from tc_export.engine.tensorrt.build import EngineReport, EngineRequest
from tc_export.native.build import PluginLibrary
from tc_export.pipeline import BuildRequest, build
from tc_export.runner import SilentReporter
from tc_export.stages import plugins, tensorrt_engines
from tc_export.targets import Target
from tests.bundled import request_for, save_with_tokenizer
from tests.device_build.fake_tools import report_of
from tests.test_pipeline import Watching

HEAD_SIZE = 64


class Tools:
    """Stands in for the CUDA compiler and for TensorRT, and notes what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiled: list[str] = []
        self.engines: list[EngineRequest] = []

    def build_plugins(self, target: Target, *, on_step: Callable[[str], None]) -> PluginLibrary:
        on_step("compiling")
        assert target.sm is not None
        assert target.toolchain.architecture is not None
        self.compiled.append(target.name)
        path = self.folder / f"{target.sm}.so"
        machine = {"x86_64": 62, "aarch64": 183}[target.toolchain.architecture]
        path.write_bytes(b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little") + b"code")
        return PluginLibrary(
            path=path,
            target=target.name,
            sm=target.sm,
            architecture=target.toolchain.architecture,
            cached=False,
        )

    def build_engine(
        self, request: EngineRequest, on_progress: Callable[[float, float | None], None]
    ) -> EngineReport:
        self.engines.append(request)
        on_progress(1, 2)
        library = request.plugin_library
        assert library.is_file() if library else not request.custom_nodes
        request.engine.write_bytes(request.graph.read_bytes()[:100])
        return report_of(request, "TensorRT-RTX 9.8.7")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    tools = Tools(tmp_path)
    monkeypatch.setattr(plugins, "build_plugins", tools.build_plugins)
    monkeypatch.setattr(tensorrt_engines, "build_engine", tools.build_engine)
    monkeypatch.setattr(plugins, "can_compile_for", lambda release: True)
    monkeypatch.setattr(plugins, "check_cuda", lambda release: None)
    monkeypatch.setattr(plugins, "library_key", lambda target: f"library for SM {target.sm}")
    return tools


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    return save_with_tokenizer(folder, text={"head_dim": HEAD_SIZE})


@pytest.fixture(scope="session")
def on_processor(checkpoint: Path) -> Path:
    """A bundle for the processor, in float16."""
    output = checkpoint.with_name("bundle")
    request = request_for(checkpoint, output)
    build(replace(request, precision="float16"), SilentReporter())
    return output


@pytest.fixture
def request_(checkpoint: Path, on_processor: Path, tmp_path: Path) -> BuildRequest:
    """A build beside that bundle, which saves exporting the same graphs for every test."""
    (tmp_path / "out").mkdir()
    shutil.copytree(on_processor, tmp_path / "out" / "processor")
    request = request_for(checkpoint, tmp_path / "out" / "bundle")
    return replace(request, target="rtx4090", check_parity=False)


def built(request: BuildRequest) -> tuple[Manifest, list[str]]:
    watching = Watching()
    return build(request, watching), watching.ran
