# SPDX-License-Identifier: Apache-2.0
"""Building an engine, as far as it is ours: over a stand-in for TensorRT in the worker."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tc_export.contracts.shapes import ShapeRange
from tc_export.engine.tensorrt import cuda
from tc_export.engine.tensorrt.build import EngineReport, EngineRequest, build_engine
from tc_export.errors import (
    CheckFailed,
    InputError,
    TcExportError,
    UnsupportedEnvironment,
    UsageError,
)
from tests.engine.tensorrt.test_layer_listing import OLD_CONVOLUTION, OLD_GEMM
from tests.plugins.native import need, run

GEMM = OLD_GEMM
Build = Callable[..., EngineReport]


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with TensorRT 10.3 and one GPU, of compute capability 8.7."""
    need("cc", package="gcc")
    folder = tmp_path / "device"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("fake_builder.py"), folder / "tensorrt_bindings.py")
    source = folder / "driver.c"
    source.write_text(
        "int cuInit(unsigned flags) { return 0; }\n"
        "int cuDeviceGet(int *device, int number) { *device = 5 + number; return 0; }\n"
        "int cuDeviceGetAttribute(int *value, int attribute, int device) {\n"
        "  if (device != 5) return 101;\n"
        "  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;\n"
        "  return 0;\n"
        "}\n"
    )
    run("cc", "-shared", "-fPIC", "-o", folder / cuda.DRIVER, source)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    return folder


@pytest.fixture
def request_of(tmp_path: Path) -> EngineRequest:
    """A request that the stand-in serves."""
    graph = tmp_path / "graph" / "model.onnx"
    graph.parent.mkdir()
    graph.write_bytes(b"a graph")
    (tmp_path / "out").mkdir()
    return EngineRequest(
        flavour="tensorrt",
        graph=graph,
        engine=tmp_path / "out" / "model.engine",
        shapes={"x": ShapeRange((1, 8), (3, 8), (5, 8))},
        precision="float16",
        compute_capability=87,
        custom_nodes={"TcDualRope": 2, "TcBlockCausalAttention": 1},
    )


@pytest.fixture
def build(device: Path, request_of: EngineRequest) -> Build:
    """Builds over the stand-in; keywords change the request or, named `fake`, the stand-in."""
    ops = ["TcDualRope", "TcBlockCausalAttention", "TcDualRope"]

    def build(
        fake: dict[str, Any] | None = None,
        on_progress: Callable[[float, float | None], None] = lambda done, total: None,
        **changes: Any,
    ) -> EngineReport:
        behaviour = {
            "version": "10.3.0",
            "crash": "",
            "shape": [-1, 8],
            "layers": [GEMM, GEMM],
            "plugins": ops,
        }
        (device / "fake.json").write_text(json.dumps(behaviour | (fake or {})))
        return build_engine(replace(request_of, **changes), on_progress)

    return build


def left(request_of: EngineRequest) -> list[str]:
    return [path.name for path in request_of.engine.parent.iterdir()]


def test_an_engine_and_its_report(build: Build, request_of: EngineRequest) -> None:
    told: list[tuple[float, float | None]] = []
    report = build(on_progress=lambda done, total: told.append((done, total)))
    assert request_of.engine.read_bytes() == b"an engine"
    assert left(request_of) == ["model.engine"]
    assert told == [(0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (1.0, 1.0)]
    assert report.tensorrt == "TensorRT 10.3.0"
    assert report.plugin_layers == {"TcBlockCausalAttention": 1, "TcDualRope": 2}
    assert (report.layers, report.layer_types) == (2, {"gemm": {"float16": 2}})
    assert report.precision == "float16"
    assert report.engine_bytes == len(b"an engine")
    assert 1e6 < report.peak_bytes < 200e6  # Python, and not the process that started it
    assert 0 < report.seconds < 60


def test_an_engine_is_replaced_only_by_one_that_passed(
    build: Build, request_of: EngineRequest
) -> None:
    request_of.engine.write_bytes(b"the last one")
    with pytest.raises(UnsupportedEnvironment):
        build({"crash": "build"})
    assert request_of.engine.read_bytes() == b"the last one"
    build()
    assert request_of.engine.read_bytes() == b"an engine"
    assert left(request_of) == ["model.engine"]


@pytest.mark.parametrize(
    ("crash", "error", "says"),
    [
        ("abort", TcExportError, r"died \(SIGABRT\)[^$]*\n.*throwing an instance"),
        ("memory", UnsupportedEnvironment, "killed .*most likely memory ran out"),
        ("bug", TcExportError, r"died \(exit code 1\)[^$]*ZeroDivisionError: a bug"),
        ("start", UnsupportedEnvironment, "TensorRT 10.3.0 does not start: .*nullptr"),
        ("import", UnsupportedEnvironment, "cannot be loaded: libnvinfer.so.10"),
        (
            "build",
            UnsupportedEnvironment,
            r"could not build the engine\n  Error Code 10: no implem",
        ),
        ("profile", UsageError, "TensorRT 10.3.0 refuses the profile"),
    ],
)
def test_what_goes_wrong_in_the_builder(
    build: Build, request_of: EngineRequest, crash: str, error: type[TcExportError], says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        build({"crash": crash})
    assert type(raised.value) is error
    assert left(request_of) == []


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "12.0.0"])
def test_another_version(build: Build, request_of: EngineRequest, version: str) -> None:
    expected = rf"TensorRT {version} is here; expected 10.x or 11.x, 10.3 or later"
    with pytest.raises(UnsupportedEnvironment, match=expected):
        build({"version": version})
    assert left(request_of) == []


@pytest.mark.parametrize("plugins", [[], ["TcDualRope"] * 2, ["TcDualRope"] * 3])
def test_a_silent_fall_back_is_a_failure(
    build: Build, request_of: EngineRequest, plugins: list[str]
) -> None:
    with pytest.raises(
        UnsupportedEnvironment, match=r"made plugin layers \{.*custom nodes \{"
    ) as raised:
        build({"plugins": plugins})
    assert "'TcBlockCausalAttention': 1" in str(raised.value)
    assert left(request_of) == []


def test_another_precision_is_a_failure(build: Build, request_of: EngineRequest) -> None:
    says = r"asked for in float16.*float16\+float32:\n  float32: 1 layers, such as /f.0/Conv"
    with pytest.raises(CheckFailed, match=says):
        build({"layers": [GEMM, OLD_CONVOLUTION, GEMM]})
    with pytest.raises(CheckFailed, match=r"asked for in bfloat16.*in float16"):
        build(precision="bfloat16")
    with pytest.raises(CheckFailed, match="lists no layer that multiplies"):
        build({"layers": ["a list in another language"]})
    assert left(request_of) == []


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({}, "x: no shapes are given"),
        ({"x": [(1, 8)] * 3, "y": [(1,)] * 3}, "y: the graph has no such input"),
        ({"x": [(1, 8, 1)] * 3}, r"x: \[1, 8, 1\].* does not fit \[-1, 8\]"),
        ({"x": [(1, 8), (2, 9), (3, 9)]}, "does not fit"),
        ({"x": [(2, 8), (1, 8), (3, 8)]}, r"\[2, 8\] / \[1, 8\] / \[3, 8\] does not fit"),
        ({"x": [(2, 8), (3, 8), (2, 8)]}, "does not fit"),
        ({"x": [(0, 8), (1, 8), (1, 8)]}, "does not fit"),
    ],
)
def test_shapes_that_do_not_fit(
    build: Build, request_of: EngineRequest, shapes: dict[str, Any], says: str
) -> None:
    ranges = {name: ShapeRange(*triple) for name, triple in shapes.items()}
    with pytest.raises(UsageError, match=says) as raised:
        build(shapes=ranges)
    assert raised.value.hint == "the graph's inputs: x"
    assert left(request_of) == []


def test_an_interrupt_leaves_nothing(build: Build, request_of: EngineRequest) -> None:
    def interrupt(done: float, total: float | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build({"crash": "slow"}, on_progress=interrupt)
    assert left(request_of) == []


def test_the_timing_cache_is_read_and_written_again(
    build: Build, request_of: EngineRequest, tmp_path: Path
) -> None:
    cache = tmp_path / "timings" / "cache"
    cache.parent.mkdir()
    build(timing_cache=cache)
    assert cache.read_bytes() == b"timings "
    build(timing_cache=cache)
    assert cache.read_bytes() == b"timings timings "
    cache.write_bytes(b"damaged")
    build(timing_cache=cache)
    assert cache.read_bytes() == b"timings "
    assert list(cache.parent.iterdir()) == [cache]
    with pytest.raises(UsageError, match="no timing cache"):
        build(timing_cache=cache, flavour="tensorrt-rtx")


def test_the_gpu_is_that_of_the_target(build: Build, request_of: EngineRequest) -> None:
    assert build(compute_capability=None).precision == "float16"
    with pytest.raises(UnsupportedEnvironment, match=r"which is an SM87; asked for was SM110"):
        build(compute_capability=110)


def test_no_driver_and_no_gpu(build: Build, device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = device / "driver.c"
    source.write_text(source.read_text().replace("flags) { return 0", "flags) { return 100"))
    run("cc", "-shared", "-fPIC", "-o", device / cuda.DRIVER, source)
    with pytest.raises(UnsupportedEnvironment, match=r"the driver finds none \(CUDA error 100\)"):
        build()
    monkeypatch.setattr(cuda, "DRIVER", "libcuda-is-not-here.so")
    with pytest.raises(UnsupportedEnvironment, match="there is no NVIDIA driver"):
        cuda.compute_capability()


def elf(path: Path, machine: int) -> Path:
    """A file that begins as a shared library for a processor does."""
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine) + bytes(44))
    return path


def test_files_that_are_not_what_they_should_be(
    build: Build, request_of: EngineRequest, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="there is no graph at"):
        build(graph=tmp_path / "none.onnx")
    with pytest.raises(UnsupportedEnvironment, match="there is no plugin library at"):
        build(plugin_library=tmp_path / "none.so")
    other = {"x86_64": 183, "aarch64": 62}[os.uname().machine]
    with pytest.raises(UnsupportedEnvironment, match=r"is for .*, and this machine is"):
        build(plugin_library=elf(tmp_path / "other.so", other))
    with pytest.raises(UnsupportedEnvironment, match="is for ELF machine 243"):
        build(plugin_library=elf(tmp_path / "other.so", 243))
    (tmp_path / "text.so").write_text("not a library, but long enough to be one")
    with pytest.raises(UnsupportedEnvironment, match="is not a shared library"):
        build(plugin_library=tmp_path / "text.so")
    assert left(request_of) == []


def test_a_folder_that_is_not_there(build: Build, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        build(engine=tmp_path / "nowhere" / "model.engine")
