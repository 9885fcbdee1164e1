# SPDX-License-Identifier: Apache-2.0
"""The fakes have nothing that the real libraries lack: names, and how many arguments they take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tc_export.engine.tensorrt import cuda
from tc_export.engine.tensorrt import run as tensorrt
from tc_export.engine.tensorrt.bindings import import_tensorrt
from tc_export.engine.tensorrt.flavours import FLAVOURS, TENSORRT_RTX
from tc_export.errors import UnsupportedEnvironment
from tests.engine.tensorrt import fake_runtime as fake
from tests.engine.tensorrt.fake_cuda import CaptureMode, CopyKind, Error, FakeCuda
from tests.plugins.native import fetched

# TensorRT's name for each class of the fake.
CLASSES = {
    "Runtime": fake.Runtime,
    "IPluginRegistry": fake.Registry,
    "ICudaEngine": fake.CudaEngine,
    "IExecutionContext": fake.Context,
}
ENUMS = ("DataType", "TensorIOMode", "ILogger.Severity", "CudaGraphStrategy")
ONLY_RTX = {"create_runtime_config"}

# Imports TensorRT's bindings and prints what they have; in a process of its own, since both
# bindings cannot be in one.
WORKER = """
import importlib, json, sys
from operator import attrgetter

sys.path.insert(0, sys.argv[1])
trt = importlib.import_module(sys.argv[2])
found = {}
for name in sys.argv[3:]:
    try:
        found[name] = dir(attrgetter(name)(trt))
    except AttributeError:
        found[name] = []
print(json.dumps({"version": trt.__version__, "names": found}))
"""


def names_in(package: str, module: str) -> dict[str, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(fetched(package)), module, *CLASSES, *ENUMS],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)["names"]
    return {name: set(names) for name, names in found.items()}


def public(thing: type) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("package", "module"),
    [("tensorrt-rtx", "tensorrt_rtx_bindings"), ("tensorrt-lean", "tensorrt_lean_bindings")],
)
def test_tensorrt_has_what_is_used(package: str, module: str) -> None:
    rtx = package == "tensorrt-rtx"
    real = names_in(package, module)
    for name, thing in CLASSES.items():
        assert public(thing), name
        assert public(thing) - (set() if rtx else ONLY_RTX) <= real[name]
    assert set(tensorrt._TYPES) <= real["DataType"]
    assert {mode.name for mode in fake.TensorIOMode} <= real["TensorIOMode"]
    assert {severity.name for severity in fake.Severity} <= real["ILogger.Severity"]
    assert ("WHOLE_GRAPH_CAPTURE" in real["CudaGraphStrategy"]) == rtx


def test_the_real_package_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name that the registry's wheel has."""
    code = (
        "from tc_export.engine.tensorrt.bindings import import_tensorrt\n"
        "from tc_export.engine.tensorrt.flavours import FLAVOURS, TENSORRT_RTX\n"
        "print(import_tensorrt(FLAVOURS[TENSORRT_RTX]).__version__)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.append({str(fetched('tensorrt-rtx'))!r})\n{code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1.7.1.116"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(UnsupportedEnvironment):
        import_tensorrt(FLAVOURS[TENSORRT_RTX])


@pytest.fixture
def bindings() -> ModuleType:
    module: ModuleType = pytest.importorskip(
        cuda.BINDINGS, reason="the CUDA bindings are not installed: pip install cuda-bindings"
    )
    return module


def test_cuda_has_what_is_used(bindings: ModuleType) -> None:
    functions = {name for name in public(FakeCuda) if name.startswith("cuda")}
    kinds = {"cudaMemcpyKind", "cudaStreamCaptureMode"}
    assert functions == {name for name in cuda.CudaRuntime.__annotations__ if name[0] != "_"}
    for name in functions - kinds:
        assert (
            arguments(getattr(bindings, name)) == FakeCuda.__dict__[name].__code__.co_argcount - 1
        )
    for real, ours in (
        (bindings.cudaMemcpyKind, CopyKind),
        (bindings.cudaStreamCaptureMode, CaptureMode),
        (bindings.cudaError_t, Error),
    ):
        members = {member.name: member.value for member in ours}
        assert members.keys() <= set(real.__members__)
    assert {error.name: int(error) for error in Error}.items() <= {
        error.name: int(error) for error in bindings.cudaError_t
    }.items()


def arguments(function: Callable[..., Any]) -> int:
    """How many arguments a function of the bindings takes, by the first line of its help."""
    first = (function.__doc__ or "").splitlines()[0]
    inside = re.fullmatch(r"\w+\((.*)\)", first)
    assert inside, first
    return len(inside[1].split(",")) if inside[1] else 0


def test_the_real_bindings_are_opened(
    bindings: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bindings, "cudaGetDeviceCount", lambda: (0, 1))
    assert cuda.open_cuda() is bindings  # type: ignore[comparison-overlap]


def test_the_real_bindings_without_a_gpu(bindings: ModuleType) -> None:
    """What they answer with becomes our error."""
    if int(bindings.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU here")
    with pytest.raises(UnsupportedEnvironment, match=r"cudaGetDeviceCount\(\) failed"):
        cuda.open_cuda()
