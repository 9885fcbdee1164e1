# SPDX-License-Identifier: Apache-2.0
"""The CPU library, built once for all tests that want it."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import pytest

from tc_export.native.find import NativeLibrary, load_native_library
from tc_export.ops.native import NativeKernels
from tests.plugins.native import REPOSITORY, build, need

BUILD = REPOSITORY / "build" / "cpu"
ISAS = {"portable": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4, "amx": 5}


@pytest.fixture(scope="session")
def native_build() -> Path:
    """A build folder with the library and its C++ tests."""
    need("cmake", "g++", "make", package="cmake g++ make")
    for target in ("tc_ops", "tc_cpu_tests"):
        build(BUILD, target, "-DTC_ENABLE_CUDA=OFF")
    return BUILD


@pytest.fixture(scope="session")
def library(native_build: Path) -> NativeLibrary:
    return load_native_library(native_build / "cpu" / "libtc_ops.so")


@pytest.fixture(scope="session")
def emulated_amx(native_build: Path) -> ctypes.CDLL:
    """A library with the code for Intel's matrix unit, whose instructions are emulated."""
    if platform.machine() != "x86_64":
        pytest.skip(f"there is no AMX on {platform.machine()}, and none is emulated there")
    return ctypes.CDLL(str(native_build / "tests" / "cpu" / "libtc_ops_emulated_amx.so"))


def name_of(library: ctypes.CDLL, isa: int) -> str | None:
    """The name of an instruction set that a library can use here."""
    library.tc_cpu_isa_name.restype = ctypes.c_char_p
    name: bytes | None = library.tc_cpu_isa_name(isa)
    return None if name is None else name.decode()


@pytest.fixture(params=ISAS)
def kernels(request: pytest.FixtureRequest, library: NativeLibrary) -> NativeKernels:
    """The kernels on one instruction set."""
    handle, isa = library.handle, ISAS[request.param]
    if request.param == "amx" and name_of(handle, isa) is None:
        handle = request.getfixturevalue("emulated_amx")
    if name_of(handle, isa) is None:
        pytest.skip(f"this processor does not have {request.param}")
    assert name_of(handle, isa) == request.param
    return NativeKernels(handle, isa=isa)
