# SPDX-License-Identifier: Apache-2.0
"""The adapter against the real Python bindings of TensorRT 10.3 to 11.4 and TensorRT-RTX.

The libraries under TensorRT's bindings cannot be had here, so stand-ins are compiled that export
the names which the bindings import, and hand out null pointers. That is enough to import them, to
see every class, member and signature, and to run what needs no library.
"""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tc_export.engine.tensorrt import bindings
from tc_export.engine.tensorrt.builder import network
from tc_export.engine.tensorrt.flavours import FLAVOURS
from tc_export.errors import UnsupportedEnvironment
from tests.engine.tensorrt import fake_runtime
from tests.plugins.native import fetched, need, run
from tests.repository import REPOSITORY

WORKER = Path(__file__).with_name("bindings_worker.py")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")

# Class -> what the adapter uses of it -> number of arguments, or None for what is not called.
CONTRACT: dict[str, dict[str, int | None]] = {
    "Builder": {
        "build_serialized_network": 2,
        "create_builder_config": 0,
        "create_network": 1,
        "create_optimization_profile": 0,
    },
    "BuilderFlag": {"TF32": None},
    "IBuilderConfig": {
        "add_optimization_profile": 1,
        "clear_flag": 1,
        "create_timing_cache": 1,
        "get_timing_cache": 0,
        "profiling_verbosity": None,
        "progress_monitor": None,
        "set_preview_feature": 2,
        "set_timing_cache": 2,
    },
    "ILayer": {"type": None},
    "ILogger": {"log": 2, "Severity": None, "ERROR": None, "INTERNAL_ERROR": None},
    "INetworkDefinition": {
        "get_input": 1,
        "get_layer": 1,
        "num_inputs": None,
        "num_layers": None,
    },
    "IOptimizationProfile": {"set_shape": 4},
    "IPluginRegistry": {"load_library": 1},
    "IPluginV3": {"get_capability_interface": 1},
    "IPluginV3Layer": {"plugin": None},
    "IPluginV3OneCore": {"plugin_name": None},
    "IProgressMonitor": {"phase_start": 3, "step_complete": 2, "phase_finish": 1},
    "ITensor": {"name": None, "shape": None},
    "ITimingCache": {"serialize": 0},
    "LayerType": {"PLUGIN_V3": None},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED": None},
    "OnnxParser": {"get_error": 1, "num_errors": None, "parse_from_file": 1},
    "ParserError": {"desc": 0},
    "PluginCapabilityType": {"CORE": None},
    "PreviewFeature": {"ALIASED_PLUGIN_IO_10_03": None},
    "ProfilingVerbosity": {"DETAILED": None},
}
# What TensorRT-RTX alone has: it is told its target.
RTX_CONTRACT: dict[str, dict[str, int | None]] = {
    "ComputeCapability": {"SM89": None, "SM120": None},
    "IBuilderConfig": {"num_compute_capabilities": None, "set_compute_capability": 2},
}


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stand-ins for the libraries of TensorRT 10 and 11."""
    need("cc", package="gcc")
    folder = tmp_path_factory.mktemp("stand-ins")
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for library in LIBRARIES:
        for major in (10, 11):
            run("cc", "-shared", "-fPIC", "-o", folder / f"lib{library}.so.{major}", source)
    return folder


def python_path(package: Path) -> str:
    """Where a process finds TensorRT's bindings, and this repository."""
    return os.pathsep.join((str(package), str(REPOSITORY)))


def report_on(package: Path, libraries: Path) -> dict[str, Any]:
    """What bindings_worker.py says of the bindings in a folder."""
    done = subprocess.run(
        [sys.executable, str(WORKER)],
        input=json.dumps(CONTRACT),
        env=os.environ | {"PYTHONPATH": python_path(package), "LD_LIBRARY_PATH": str(libraries)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize(
    ("version", "strongly_typed"),
    [("10.3", 1 << 1), ("10.13", 1 << 1), ("10.16", 1 << 1), ("11.4", 1 << 0)],
)
def test_every_version_has_what_the_adapter_uses(
    stand_ins: Path, version: str, strongly_typed: int
) -> None:
    report = report_on(fetched(f"tensorrt-bindings-{version}"), stand_ins)
    assert report["version"].startswith(f"{version}.")
    assert report["departures"] == []
    assert report["strongly_typed"] == strongly_typed
    assert report["log"] == {
        "errors": ["an error", "a bug"],
        "layers": ["Name: a, LayerType: gemm"],
    }
    assert report["progress"] == [0.25, 0.5, 1.0]
    assert report["ways_down"] == [True, True]
    assert report["start"].startswith(f"TensorRT {report['version']} does not start")


def test_tensorrt_rtx_has_it_too() -> None:
    """No stand-ins: its libraries are real, and need no GPU."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, sys\n"
            "import tensorrt_rtx_bindings as trt\n"
            "from tests.engine.tensorrt.bindings_worker import departures\n"
            "print([departures(trt, contract) for contract in json.load(sys.stdin)])",
        ],
        input=json.dumps([CONTRACT, RTX_CONTRACT]),
        env=os.environ | {"PYTHONPATH": python_path(fetched("tensorrt-rtx"))},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[], []]\n"


def test_the_contract_names_all_that_the_adapter_uses() -> None:
    """Every attribute that our modules take from one of TensorRT's objects."""
    names = r"trt|config|core|layer|parser|profile|tensor|timings|self\.(_trt|_builder|network)"
    used = {
        node.attr
        for module in (bindings, network)
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
        if isinstance(node, ast.Attribute) and re.match(rf"({names})\b", ast.unparse(node.value))
    }
    contracts = (CONTRACT, RTX_CONTRACT)
    classes = {name for contract in contracts for name in contract}
    members = {name for contract in contracts for names in contract.values() for name in names}
    of_the_module = {"get_plugin_registry", "__version__"}
    of_python = {"__class__", "__init__", "__members__", "get", "items"}
    assert len(used) > 40
    assert used <= classes | members | of_the_module | of_python


def test_what_tensorrt_says_goes_where_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    logger = bindings.new_logger(SimpleNamespace(ILogger=fake_runtime.Logger))
    severity = fake_runtime.Severity
    for number in range(6):
        logger.log(severity.ERROR, f"error {number}")
    logger.log(severity.INTERNAL_ERROR, "a bug")
    logger.log(severity.WARNING, "a warning")
    logger.log(severity.INFO, "Layers:\nName: a, LayerType: gemm\n\nName: b")
    assert list(logger.errors) == ["error 3", "error 4", "error 5", "a bug"]
    assert logger.layers == ["Name: a, LayerType: gemm"]
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "a warning")
    ]


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "12.0.0"])
def test_a_version_that_we_do_not_drive(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """For running as for building."""
    flavour = FLAVOURS["tensorrt"]
    for name in flavour.modules:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__=version))
    with pytest.raises(
        UnsupportedEnvironment, match=f"TensorRT {version} is here; expected 10.x or 11"
    ):
        bindings.import_tensorrt(flavour)


def test_the_module_that_loads_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Jetson whose package index put bindings without libraries beside the system's."""
    monkeypatch.syspath_prepend(tmp_path)
    first, second = FLAVOURS["tensorrt"].modules
    (tmp_path / f"{first}.py").write_text("raise ImportError('libnvinfer.so.10 is not here')")
    monkeypatch.setitem(sys.modules, second, None)
    with pytest.raises(UnsupportedEnvironment, match="cannot be loaded: libnvinfer"):
        bindings.import_tensorrt(FLAVOURS["tensorrt"])
    working = SimpleNamespace(__version__="10.3.0")
    monkeypatch.setitem(sys.modules, second, working)
    assert bindings.import_tensorrt(FLAVOURS["tensorrt"]) is working


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of TensorRT-RTX's libraries, as its wheel leaves it."""
    folder = tmp_path / "tensorrt_rtx_libs"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "libtensorrt_rtx.so.1").write_text("a library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, folder.name, raising=False)  # another test loaded the real one
    return folder


def test_the_parsers_library_gets_its_second_name(wheel: Path) -> None:
    bindings.link_parser_library()
    bindings.link_parser_library()
    link = wheel / "libtensorrt_rtx.so"
    assert link.is_symlink()
    assert link.read_text() == "a library"


def test_a_wheel_that_cannot_be_mended(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, target: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(UnsupportedEnvironment, match="cannot be made here: Read-only") as raised:
        bindings.link_parser_library()
    assert f"ln -s libtensorrt_rtx.so.1 {wheel}" in str(raised.value.hint)


@pytest.mark.parametrize(
    ("flavour", "hint"), [("tensorrt-rtx", "tc-export[rtx]"), ("tensorrt", "nvidia-jetpack")]
)
def test_a_flavour_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, flavour: str, hint: str
) -> None:
    for name in FLAVOURS[flavour].modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UnsupportedEnvironment, match="is not installed: no module tensorrt"
    ) as raised:
        bindings.import_tensorrt(FLAVOURS[flavour])
    assert hint in str(raised.value.hint)
