# SPDX-License-Identifier: Apache-2.0
"""The CPU library, built once for the whole folder."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from tc_export.engine.native_library import NativeLibrary, load_native_library
from tc_export.ops.native import NativeKernels
from tests.plugins.native import REPOSITORY, build, need

BUILD = REPOSITORY / "build" / "cpu"
ISAS = {"portable": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4}


@pytest.fixture(scope="session")
def native_build() -> Path:
    """A build folder with the library and its C++ test."""
    need("cmake", "g++", "make", package="cmake g++ make")
    for target in ("tc_ops", "tc_cpu_test"):
        build(BUILD, target, "-DTC_ENABLE_CUDA=OFF")
    return BUILD


@pytest.fixture(scope="session")
def library(native_build: Path) -> NativeLibrary:
    return load_native_library(native_build / "cpu" / "libtc_ops.so")


@pytest.fixture(params=ISAS)
def kernels(request: pytest.FixtureRequest, library: NativeLibrary) -> NativeKernels:
    """The kernels on one instruction set."""
    library.handle.tc_cpu_isa_name.restype = ctypes.c_char_p
    isa = ISAS[request.param]
    name = library.handle.tc_cpu_isa_name(isa)
    if name is None:
        pytest.skip(f"this processor does not have {request.param}")
    assert name.decode() == request.param
    return NativeKernels(library.handle, isa=isa)
