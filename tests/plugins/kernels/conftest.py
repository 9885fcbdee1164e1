# SPDX-License-Identifier: Apache-2.0
"""The kernels on the emulator, built once for the whole folder."""

from __future__ import annotations

import ctypes
import zipfile
from pathlib import Path

import pytest

from tests.plugins.kernels.fetching import wheel
from tests.plugins.native import REPOSITORY, alone, build, need

CUTLASS = "nvidia-cutlass==4.2.0.0"
SANITIZED = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", "-DTC_SANITIZE=address,undefined")


@pytest.fixture(scope="session")
def cutlass_include() -> Path:
    """The include folder of CUTLASS, which CuTe's headers lie in."""
    archive = wheel(CUTLASS)
    folder = archive.parent / "cutlass"
    include = folder / "cutlass_library" / "source" / "include"
    with alone(folder):
        if not (include / "cute").is_dir():
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
    return include


@pytest.fixture(scope="session")
def emulated_build() -> Path:
    """A build folder with the emulated kernels and their tests."""
    need("cmake", "g++", "make", package="cmake g++ make")
    folder = REPOSITORY / "build" / "kernels"
    build(folder, "tc_kernels_tests", "-DTC_ENABLE_CUDA=OFF", "-DTC_FETCH_ONNXRUNTIME=OFF")
    return folder


@pytest.fixture(scope="session")
def sanitized_build() -> Path:
    """The same under AddressSanitizer and UndefinedBehaviorSanitizer."""
    need("cmake", "g++", "make", package="cmake g++ make")
    folder = REPOSITORY / "build" / "kernels-sanitized"
    options = ("-DTC_ENABLE_CUDA=OFF", "-DTC_FETCH_ONNXRUNTIME=OFF", *SANITIZED)
    build(folder, "tc_kernels_tests", *options)
    return folder


@pytest.fixture(scope="session")
def emulated(emulated_build: Path) -> ctypes.CDLL:
    """The emulated library: tc_cuda_* on host memory."""
    library = ctypes.CDLL(str(emulated_build / "emulator" / "libtc_kernels_emulated.so"))
    library.tc_emulator_violation.restype = ctypes.c_char_p
    library.tc_cuda_block_causal_attention_workspace.restype = ctypes.c_size_t
    library.tc_cuda_block_causal_attention.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]
    library.tc_cuda_dual_rope.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library
