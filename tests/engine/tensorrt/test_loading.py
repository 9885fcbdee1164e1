# SPDX-License-Identifier: Apache-2.0
"""Opening a bundle's TensorRT engines: what is checked before, and what is said when it fails."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tc_export.bundle import EngineBuild
from tc_export.engine.loading import Engines, load_engines
from tc_export.engine.tensorrt import cuda
from tc_export.engine.tensorrt.cuda import BINDINGS
from tc_export.engine.tensorrt.parted import TrtPartedEngine
from tc_export.engine.tensorrt.run import TrtEngine
from tc_export.errors import BundleError, UnsupportedEnvironment, UsageError
from tests.engine.tensorrt.fake_cuda import FakeCuda, FakeDriver
from tests.engine.tensorrt.fake_runtime import DataType, FakeTensorRt, Model, Output
from tests.engine.tensorrt.test_run import feeds, toy

NODES = {"vision": {}, "decoder": {"TcDualRope": 2, "TcBlockCausalAttention": 1}}


class Device:
    """A device with a bundle on it, both of TensorRT 10.3 and SM 87."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.cuda = FakeCuda(sm=87)
        self.trt = FakeTensorRt(self.cuda, "10.3.0")
        self.install("tensorrt_bindings", None)
        self.install("tensorrt", self.trt)
        self.install(BINDINGS, self.cuda)
        monkeypatch.setattr(cuda, "open_driver", lambda: FakeDriver(self.cuda))
        (folder / "engines").mkdir()
        for graph in NODES:
            (folder / "engines" / f"{graph}.engine").write_bytes(graph.encode())
            self.trt.models[graph.encode()] = replace(toy(), needs_plugins=graph == "decoder")
        self.add_plugins(f"{platform.machine()}-sm87")

    def install(self, name: str, module: object) -> None:
        """Make `name` importable, or not at all where the module is None."""
        self.monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]

    def add_plugins(self, which: str) -> Path:
        path = self.folder / "plugins" / which / "libtc_tensorrt.so"
        path.parent.mkdir(parents=True)
        path.touch()
        self.trt.loadable_plugins.add(str(path))
        return path

    def load(
        self, builder: str = "TensorRT 10.3.0", sm: int | None = 87, backend: str = "tensorrt"
    ) -> Engines:
        builds = {graph: build_of(builder, sm) for graph in NODES}
        return load_engines(self.folder, NODES, backend=backend, builds=builds)


def build_of(builder: str, sm: int | None) -> EngineBuild:
    """An engine as a manifest describes it."""
    return EngineBuild(builder=builder, sm=sm, precision="float16", layers=1, plugin_layers={})


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(tmp_path, monkeypatch)


def test_both_engines_open_and_run(device: Device) -> None:
    engines = device.load()
    assert isinstance(engines.vision, TrtEngine)
    assert isinstance(engines.decoder, TrtEngine)
    assert engines.native
    assert engines.decoder.native_nodes == NODES["decoder"]
    engines.decoder.bind("sum_in", engines.decoder.allocate("sum_in", (1, 3)))
    assert engines.decoder.run(feeds(2)).keys() == {"y", "sum_out"}


@pytest.mark.parametrize("builder", ["TensorRT 10.3.0.26", "TensorRT 10.3.1"])
def test_another_patch_release_is_left_to_tensorrt(device: Device, builder: str) -> None:
    assert device.load(builder, sm=None).native


@pytest.mark.parametrize("builder", ["TensorRT 10.13.3.9", "TensorRT 11.3.0", "TensorRT-RTX 10.3"])
def test_another_version_is_refused_before_loading(device: Device, builder: str) -> None:
    with pytest.raises(
        UnsupportedEnvironment, match=f"built with {builder}, and here is TensorRT 10.3"
    ):
        device.load(builder)
    assert device.cuda.live() == []


@pytest.mark.parametrize("builder", ["TensorRT", "", "TensorRT new"])
def test_a_manifest_without_a_version(device: Device, builder: str) -> None:
    with pytest.raises(BundleError, match="no name and version"):
        device.load(builder)


def test_another_gpu(device: Device) -> None:
    with pytest.raises(UnsupportedEnvironment, match=r"GPUs of SM 89, and the one here is SM 87"):
        device.load(sm=89)


def test_no_plugins_for_this_machine(device: Device) -> None:
    device.add_plugins("riscv64-sm87")
    device.cuda.sm = 89
    with pytest.raises(
        UnsupportedEnvironment, match=r"-sm89; the bundle has riscv64-sm87, .*-sm87$"
    ):
        device.load(sm=None)


def test_plugins_that_do_not_load(device: Device) -> None:
    device.trt.loadable_plugins.clear()
    with pytest.raises(UnsupportedEnvironment, match=r"cannot load the plugins .*: Unable to load"):
        device.load()


def test_a_damaged_engine_is_named_with_tensorrts_words(device: Device) -> None:
    (device.folder / "engines" / "decoder.engine").write_bytes(b"cut off")
    with pytest.raises(BundleError, match=r"refuses .*decoder\.engine: magicTag failed"):
        device.load()


def test_bundles_do_not_share_plugins(device: Device) -> None:
    """Each runtime registers its bundle's own: two bundles in one process are no clash."""
    first, second = device.load(), device.load()
    assert first.native
    assert second.native


def test_no_gpu(device: Device) -> None:
    device.cuda.devices = 0
    with pytest.raises(UnsupportedEnvironment, match="no CUDA GPU"):
        device.load()


def test_an_old_driver(device: Device) -> None:
    device.cuda.driver_is_old = True
    with pytest.raises(UnsupportedEnvironment, match="cudaErrorInsufficientDriver") as caught:
        device.load()
    assert "driver" in str(caught.value.hint)
    device.monkeypatch.setattr(device.cuda, "cudaGetDeviceCount", fail_to_open_the_driver)
    with pytest.raises(UnsupportedEnvironment, match="Failed to dlopen"):
        device.load()


def fail_to_open_the_driver() -> None:
    """As cuda-bindings before 13 do it."""
    raise RuntimeError("Failed to dlopen libcuda.so.1")


def test_tensorrt_is_not_installed(device: Device) -> None:
    for name in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        device.install(name, None)
    with pytest.raises(
        UnsupportedEnvironment, match="TensorRT is not installed: no module"
    ) as caught:
        device.load()
    assert "nvidia-jetpack" in str(caught.value.hint)
    with pytest.raises(UnsupportedEnvironment, match="TensorRT-RTX is not installed") as caught:
        device.load("TensorRT-RTX 1.7.1.116", backend="tensorrt-rtx")
    assert "tc-export[rtx]" in str(caught.value.hint)


def test_the_bindings_alone_will_do(device: Device) -> None:
    rtx = FakeTensorRt(device.cuda, "1.7.1.116", rtx=True)
    rtx.models, rtx.loadable_plugins = device.trt.models, device.trt.loadable_plugins
    device.install("tensorrt_rtx_bindings", rtx)
    engines = device.load("TensorRT-RTX 1.7.0", backend="tensorrt-rtx")
    assert engines.decoder.backend == "TensorRT-RTX 1.7.1.116, SM 87"


def test_the_cuda_bindings_are_not_installed(device: Device) -> None:
    device.install(BINDINGS, None)
    with pytest.raises(UnsupportedEnvironment, match="CUDA bindings for Python") as caught:
        device.load()
    assert "cuda-bindings" in str(caught.value.hint)


def test_what_only_onnxruntime_takes(device: Device) -> None:
    with pytest.raises(UsageError, match="no choice of native library or threads"):
        load_engines(device.folder, NODES, backend="tensorrt", builds={}, threads=2)


def test_a_backend_that_is_not_known(device: Device) -> None:
    with pytest.raises(BundleError, match="'openvino'; known here: onnxruntime, tensorrt"):
        device.load(backend="openvino")


PART = replace(
    toy(),
    inputs={"x": toy().inputs["x"]},
    outputs={"hidden_states.1": toy().outputs["y"]},
    compute=lambda given: {"hidden_states.1": given["x"] * 3},
)
LAST = replace(
    toy(),
    inputs={"hidden_states.1": toy().inputs["x"]},
    outputs={"y": Output(DataType.FLOAT, lambda shapes: shapes["hidden_states.1"], 2)},
    compute=lambda given: {"y": given["hidden_states.1"] + 1},
)


def with_parts(device: Device, *models: Model) -> None:
    """A decoder in parts, in the place of the whole."""
    (device.folder / "engines" / "decoder.engine").unlink()
    for number, model in enumerate(models, start=1):
        name = f"decoder_part{number}"
        (device.folder / "engines" / f"{name}.engine").write_bytes(name.encode())
        device.trt.models[name.encode()] = model


def load_parts(device: Device, *names: str, parts: int = 2) -> Engines:
    builds = {name: build_of("TensorRT 10.3.0", 87) for name in ("vision", *names)}
    return load_engines(device.folder, {}, backend="tensorrt", builds=builds, parts=parts)


def test_parts_open_as_one_engine(device: Device) -> None:
    with_parts(device, PART, LAST)
    decoder = load_parts(device, "decoder_part1", "decoder_part2").decoder
    assert isinstance(decoder, TrtPartedEngine)
    x = np.ones((2, 4), np.float32)
    assert (decoder.run({"x": x})["y"] == 4).all()
    assert "in 2 parts" in decoder.backend


def test_parts_of_another_build(device: Device) -> None:
    """The engine files of two cuts, mixed: what one gives is not what the next takes."""
    with_parts(device, PART, replace(LAST, inputs={"hidden_states.2": toy().inputs["x"]}))
    with pytest.raises(BundleError, match=r"not parts of one build: .*hidden_states\.1.*\.2"):
        load_parts(device, "decoder_part1", "decoder_part2")


def test_a_part_that_nobody_built(device: Device) -> None:
    with_parts(device, PART, LAST)
    with pytest.raises(BundleError, match="missing are decoder_part2, unknown decoder_part3"):
        load_parts(device, "decoder_part1", "decoder_part3")
    with pytest.raises(BundleError, match="missing are decoder, unknown decoder_part1"):
        load_parts(device, "decoder_part1", parts=1)


def test_an_engine_of_unknown_origin(device: Device) -> None:
    builds = {"vision": build_of("TensorRT 10.3.0", 87)}
    with pytest.raises(
        BundleError, match="what built its engines: missing are decoder, unknown none"
    ):
        load_engines(device.folder, NODES, backend="tensorrt", builds=builds)
