# SPDX-License-Identifier: Apache-2.0
"""Builds for devices: which stages, what is refused before any work, what two targets share.

The compiler and TensorRT are stood in for here; a real build is in `test_rtx_build.py`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

from tc_export import pipeline
from tc_export.bundle import Description, Manifest, StageRecord, read_manifest, verify
from tc_export.checkpoint.hf_config import read_config
from tc_export.cli.main import main
from tc_export.device_build import finish as finish_module
from tc_export.device_build import machine as finish_machine
from tc_export.device_build.finish import Tools as FinishTools
from tc_export.device_build.finish import finish
from tc_export.device_build.instructions import GraphPlan
from tc_export.device_build.machine import Machine
from tc_export.engine.interface import Engine
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.engine.tensorrt.build import EngineReport, EngineRequest
from tc_export.errors import EnvironmentLacks, UsageError
from tc_export.native.build import PluginLibrary
from tc_export.pipeline import BuildRequest, build, build_each
from tc_export.plan import build_cost
from tc_export.runner import SilentReporter
from tc_export.stages import bodies as build_stages
from tc_export.targets import Precisions, Target, load_target
from tests.bundled import MAX_FRAMES, MAX_LENGTH, request_for, save_with_tokenizer
from tests.checkpoint.families import edit_config
from tests.device_build.fake_tools import report_of
from tests.repository import REPOSITORY, TARGETS
from tests.test_pipeline import Watching

HEAD_SIZE = 64


class Tools:
    """Stands in for the CUDA compiler and for TensorRT, and notes what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiled: list[str] = []
        self.engines: list[EngineRequest] = []

    def build_plugins(self, target: Target) -> PluginLibrary:
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
    monkeypatch.setattr(build_stages, "build_plugins", tools.build_plugins)
    monkeypatch.setattr(build_stages, "build_engine", tools.build_engine)
    monkeypatch.setattr(pipeline, "check_cuda", lambda release: None)
    monkeypatch.setattr(pipeline, "library_key", lambda target: f"library for SM {target.sm}")
    return tools


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    return save_with_tokenizer(folder, text={"head_dim": HEAD_SIZE})


@pytest.fixture(scope="module")
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


def test_the_manifest_says_what_was_built(request_: BuildRequest, tools: Tools) -> None:
    manifest, ran = built(replace(request_, precision="vision=fp16,decoder=bf16"))
    assert ran[-3:] == ["plugins", "vision_engine", "decoder_engine"]
    assert manifest.engine is not None
    assert (manifest.engine.state, manifest.engine.backend) == ("built", "tensorrt-rtx")
    assert manifest.precision_asked == {"vision": "float16", "decoder": "bfloat16"}
    assert manifest.precision_realised == manifest.precision_asked
    (embedding,) = load_file(request_.output / "embedding.safetensors").values()
    assert embedding.dtype == torch.bfloat16  # the decoder's
    decoder = manifest.engine_builds["decoder"]
    assert (decoder.builder, decoder.sm) == ("TensorRT-RTX 9.8.7", 89)
    assert decoder.plugin_layers == {"TcDualRope": 4, "TcBlockCausalAttention": 2}
    assert verify(request_.output) == []


def test_the_builder_is_asked_for_the_bundles_profile(request_: BuildRequest, tools: Tools) -> None:
    built(request_)
    vision, decoder = tools.engines
    assert vision.shapes["pixel_values"].largest == (MAX_FRAMES, 3, 32, 32)
    cache = decoder.shapes["past_key_values.1.value"]
    assert cache.smallest == cache.largest == (1, 2, MAX_LENGTH, HEAD_SIZE)
    assert decoder.custom_nodes == {"TcDualRope": 4, "TcBlockCausalAttention": 2}
    assert decoder.compute_capability == 89


def test_building_again_does_nothing_again(request_: BuildRequest, tools: Tools) -> None:
    built(request_)
    assert built(request_)[1] == []


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"max_length": MAX_LENGTH - 1}, {"assets", "vision_engine", "decoder_engine"}),
        (
            {"precision": "vision=fp16,decoder=bf16"},
            {"assets", "embedding", "decoder", "decoder_engine"},
        ),
        ({"target": "rtx5090"}, {"assets", "plugins", "vision_engine", "decoder_engine"}),
    ],
)
def test_a_change_runs_what_depends_on_it(
    request_: BuildRequest, tools: Tools, change: dict[str, object], again: set[str]
) -> None:
    built(request_)
    assert set(built(replace(request_, **change))[1]) == again  # type: ignore[arg-type]


def test_two_targets_share_what_they_have_in_common(request_: BuildRequest, tools: Tools) -> None:
    shutil.rmtree(request_.output.with_name("processor"))
    runs = {}
    for output, build_one in build_each(replace(request_, jobs=2), ["rtx4090", "rtx5090"]):
        watching = Watching()
        build_one(watching, lambda checkpoint, profile: None)
        runs[output.name] = set(watching.ran)
    assert {"weights", "vision", "decoder", "plugins"} <= runs["rtx4090"]
    assert runs["rtx5090"] == {"assets", "plugins", "vision_engine", "decoder_engine"}
    bundles = [read_manifest(request_.output / name) for name in ("rtx4090", "rtx5090")]
    graphs = [bundle.stages["decoder"].files for bundle in bundles]
    assert graphs[0] == graphs[1]
    assert tools.compiled == ["rtx4090", "rtx5090"]


def test_a_target_of_ones_own(request_: BuildRequest, tools: Tools, tmp_path: Path) -> None:
    shipped = TARGETS / "rtx4090.toml"
    own = tmp_path / "bench.toml"
    text = shipped.read_text().replace('"rtx4090"', '"bench"')
    own.write_text(text.replace("sm = 89", "sm = 86"))
    manifest, _ = built(replace(request_, target=str(own)))
    assert manifest.target == "bench"
    assert tools.engines[0].compute_capability == 86


class OnDevice:
    """Stands in for TensorRT on the device: an engine is the graph in ONNX Runtime."""

    def __init__(self, tools: Tools) -> None:
        self.opened: list[str] = []
        self.tools = FinishTools(build_engine=tools.build_engine, open_engine=self.open)

    def open(self, engine: Path, plugin_library: Path, graph: GraphPlan, /) -> Engine:
        assert plugin_library.is_file()
        self.opened.append(engine.name)
        return OrtEngine(engine.parents[1] / engine.stem / "model.onnx", threads=1)


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
    graphs = [request_.output / "tensorrt" / name / "model.onnx" for name in ("vision", "decoder")]
    assert not any(onnx.load(path, load_external_data=False).functions for path in graphs)
    assert graphs[1].with_name("weights.bin").samefile(request_.output / "decoder" / "weights.bin")
    assert verify(request_.output) == []


def test_a_bundle_that_its_device_finished_stays_so(request_: BuildRequest, tools: Tools) -> None:
    asked = replace(request_, target="orin")
    built(asked)
    device = OnDevice(tools)
    finished = finish(request_.output, ORIN, device.tools)
    assert finished.engine is not None
    assert finished.engine.state == "built"
    assert device.opened == ["vision.engine", "decoder.engine"]
    assert [x.graph.parent.name for x in tools.engines] == ["vision", "decoder"]
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
    description = {x: getattr(read_manifest(on_processor), x) for x in Description.model_fields}
    records = dict.fromkeys(stages.split(), record)
    assert (
        pipeline.is_finished(Manifest.assemble(Description(**description), records)) == is_finished
    )


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
    monkeypatch.setattr(finish_machine, "this_machine", lambda plan: machine)
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
    plan = json.loads((request_.output / "finish" / "finish.json").read_text())
    assert plan["tensorrt"] == version
    graph = onnx.load(request_.output / plan["graphs"]["vision"]["graph"], load_external_data=False)
    (opset,) = (entry.version for entry in graph.opset_import if not entry.domain)
    assert opset == (20 if version == "10.3" else 23)


def refused(request: BuildRequest, error: type[Exception]) -> str:
    """The message; nothing was written."""
    with pytest.raises(error) as caught:
        build(request, Watching())
    assert not request.output.exists()
    assert not list(request.output.parent.glob(".*building"))
    return f"{caught.value}\n{getattr(caught.value, 'hint', '')}"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return tmp_path / "other"


def test_a_head_size_that_no_kernel_has(request_: BuildRequest, tools: Tools, other: Path) -> None:
    small = save_with_tokenizer(other)
    message = refused(replace(request_, checkpoint=small), UsageError)
    assert "heads have 16 channels" in message
    assert "64, 80, 96, 128, 256" in message


def test_the_head_sizes_are_those_of_the_kernels() -> None:
    source = REPOSITORY / "plugins" / "kernels" / "attention_dispatch.cuh"
    sizes = re.findall(r"case (\d+): return function\(type, HeadSize<\1>", source.read_text())
    assert tuple(map(int, sizes)) == pipeline.PLUGIN_HEAD_SIZES


def test_a_mask_that_is_no_prefix(request_: BuildRequest, tools: Tools, other: Path) -> None:
    frame_block = save_with_tokenizer(other, text={"head_dim": HEAD_SIZE})
    edit_config(frame_block, lambda document: document.update(temporal={"mask": "frame_block"}))
    assert "no prefix" in refused(replace(request_, checkpoint=frame_block), UsageError)


@pytest.mark.parametrize(
    ("step", "parity", "hint"),
    [("engine", False, "larger machine"), ("parity", True, "--no-parity")],
)
def test_too_little_memory(
    request_: BuildRequest,
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    parity: bool,
    hint: str,
) -> None:
    real = build_cost.build_cost

    def cost(*arguments: object) -> build_cost.BuildCost:
        peaks = real(*arguments).peak_by_step | {step: 9_000_000_000}  # type: ignore[arg-type]
        return build_cost.BuildCost(peak_by_step=peaks, host_bytes=8_000_000_000)

    monkeypatch.setattr(pipeline, "build_cost", cost)
    message = refused(replace(request_, check_parity=parity), EnvironmentLacks)
    assert f"{step!r} would take 9.0 GB" in message
    assert "8.0 GB" in message
    assert hint in message


def test_memory_for_parity_is_needed_for_parity_only(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = build_cost.BuildCost(peak_by_step={"engine": 1, "parity": 9}, host_bytes=8)
    monkeypatch.setattr(pipeline, "build_cost", lambda *arguments: cost)
    config, target = read_config(checkpoint).model, load_target("orin")
    check = partial(pipeline.check_possible, config, target, Precisions.both("float16"))
    check(check_parity=False)
    with pytest.raises(EnvironmentLacks, match="'parity'"):
        check(check_parity=True)


def test_a_float16_bundle_for_the_processor(on_processor: Path) -> None:
    manifest = read_manifest(on_processor)
    assert manifest.precision_realised == {"vision": "float16", "decoder": "float16"}
    report = (on_processor / "parity" / "report.json").read_text()
    assert '"precision": "float16"' in report
    assert torch.get_default_dtype() == torch.float32
