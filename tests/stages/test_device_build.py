# SPDX-License-Identifier: Apache-2.0
"""Builds whose engine is pending, and what becomes of them on the device and on a second build."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from tc_export.bundle import BundleSpec, Manifest, StageRecord, read_manifest, verify
from tc_export.bundle.layout import graph_path, tensorrt_graph_path
from tc_export.cli.main import main
from tc_export.device_build import finish as finish_module
from tc_export.device_build import machine as finish_machine
from tc_export.device_build.finish import Tools as FinishTools
from tc_export.device_build.finish import finish
from tc_export.device_build.machine import Machine
from tc_export.device_build.spec import EngineSpec
from tc_export.engine.interface import Engine
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.pipeline import BuildRequest
from tc_export.stages import device_build
from tests.bundled import MAX_FRAMES, MAX_LENGTH
from tests.stages.conftest import Tools, built


class OnDevice:
    """Stands in for TensorRT on the device: an engine is the graph in ONNX Runtime."""

    def __init__(self, tools: Tools) -> None:
        self.opened: list[str] = []
        self.tools = FinishTools(build_engine=tools.build_engine, open_engine=self.open)

    def open(self, engine: Path, plugin_library: Path, spec: EngineSpec, /) -> Engine:
        assert plugin_library.is_file()
        self.opened.append(engine.name)
        return OrtEngine(engine.parents[1] / graph_path(engine.stem), threads=1)


ORIN = Machine("aarch64", "10.16.1", 87)


def test_a_device_that_is_not_here(request_: BuildRequest, tools: Tools) -> None:
    asked = replace(request_, target="orin")
    manifest, _ = built(asked)
    assert manifest.engine is not None
    assert manifest.engine.state == "pending"
    assert manifest.engine.next_step
    assert "finish" in manifest.engine.next_step
    assert not tools.engines
    files = set(manifest.files)
    assert {"plugins/aarch64-sm87/libtc_tensorrt.so", "finish/finish.sh"} <= files
    graphs = [request_.output / tensorrt_graph_path(name) for name in ("vision", "decoder")]
    assert not any(onnx.load(path, load_external_data=False).functions for path in graphs)
    assert {path.name for path in graphs[1].parent.iterdir()} == {
        *("vision.onnx", "vision.tensorrt.onnx", "vision.weights.bin"),
        *("decoder.onnx", "decoder.tensorrt.onnx", "decoder.weights.bin"),
    }
    assert verify(request_.output) == []


def test_a_bundle_that_its_device_finished_stays_so(request_: BuildRequest, tools: Tools) -> None:
    asked = replace(request_, target="orin")
    built(asked)
    device = OnDevice(tools)
    finished = finish(request_.output, ORIN, device.tools)
    assert finished.engine is not None
    assert finished.engine.state == "built"
    assert device.opened == ["vision.engine", "decoder.engine"]
    assert [x.graph.name for x in tools.engines] == [
        "vision.tensorrt.onnx",
        "decoder.tensorrt.onnx",
    ]
    assert verify(request_.output) == []
    manifest, ran = built(asked)
    assert ran == []
    assert manifest == finished
    manifest, ran = built(replace(asked, max_length=MAX_LENGTH - 1))
    assert manifest.engine is not None
    assert manifest.engine.state == "pending"
    assert "finish" in ran


def test_a_finished_bundle_that_is_damaged_is_made_again(
    request_: BuildRequest, tools: Tools
) -> None:
    asked = replace(request_, target="orin")
    built(asked)
    finish(request_.output, ORIN, OnDevice(tools).tools)
    (request_.output / "embedding.safetensors").write_bytes(b"")
    manifest, _ = built(asked)
    assert verify(request_.output) == []
    assert manifest.engine is not None
    assert manifest.engine.state == "pending"


@pytest.mark.parametrize(
    ("stages", "is_finished"),
    [
        ("finish", False),
        ("finish vision_engine", False),
        ("vision_engine decoder_engine", False),  # built on the host, and built there again
        ("finish vision_engine decoder_engine", True),
    ],
)
def test_finished_is_what_has_both_engines_of_its_device(
    on_processor: Path, stages: str, is_finished: bool
) -> None:
    record = StageRecord(key="0" * 64, seconds=0, files={})
    spec = {x: getattr(read_manifest(on_processor), x) for x in BundleSpec.model_fields}
    records = dict.fromkeys(stages.split(), record)
    assert device_build.is_finished(Manifest.assemble(BundleSpec(**spec), records)) == is_finished


@pytest.mark.parametrize(("sm", "state"), [(87, "built"), (89, "pending")])
def test_a_build_on_the_device_itself_is_finished_at_once(
    request_: BuildRequest,
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sm: int,
    state: str,
) -> None:
    device = OnDevice(tools)
    machine = replace(ORIN, sm=sm)
    monkeypatch.setattr(finish_machine, "this_machine", lambda spec: machine)
    monkeypatch.setattr(finish_module, "Tools", lambda **shown: replace(device.tools, **shown))
    arguments = ["build", "--checkpoint", str(request_.checkpoint), "--target", "orin"]
    arguments += ["--output", str(request_.output), "--max-length", str(MAX_LENGTH), "--no-parity"]
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--max-frames", str(MAX_FRAMES)])
    assert exit_.value.code == 0
    assert f"engine: {state} (tensorrt)" in capsys.readouterr().out
    manifest = read_manifest(request_.output)
    assert manifest.engine is not None
    assert manifest.engine.state == state


@pytest.mark.parametrize(
    ("release", "version"), [("JetPack 6.2", "10.3"), ("10.16", "10.16"), (None, "10.16")]
)
def test_graphs_are_for_the_release(
    request_: BuildRequest, tools: Tools, release: str | None, version: str
) -> None:
    built(replace(request_, target="orin", release=release))
    spec = json.loads((request_.output / "finish" / "finish.json").read_text())
    assert spec["tensorrt"] == version
    graph = onnx.load(request_.output / spec["graphs"]["vision"]["graph"], load_external_data=False)
    (opset,) = (entry.version for entry in graph.opset_import if not entry.domain)
    assert opset == (20 if version == "10.3" else 23)
