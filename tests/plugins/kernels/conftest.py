# SPDX-License-Identifier: Apache-2.0
"""The kernels on the emulator, built once for this folder and that of the emulator's tests."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from tests.plugins.native import REPOSITORY, build, need

TARGETS = ("tc_kernels_tests", "tc_emulator_tests")
WITHOUT = ("-DTC_ENABLE_CUDA=OFF", "-DTC_FETCH_ONNXRUNTIME=OFF")
SANITIZED = ("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1", "-DTC_SANITIZE=address,undefined")


@pytest.fixture(scope="session")
def emulated_build() -> Path:
    """A build folder with the emulated kernels, their tests and the emulator's."""
    need("cmake", "g++", "make", package="cmake g++ make")
    folder = REPOSITORY / "build" / "kernels"
    for target in TARGETS:
        build(folder, target, *WITHOUT)
    return folder


@pytest.fixture(scope="session")
def sanitized_build() -> Path:
    """The same under AddressSanitizer and UndefinedBehaviorSanitizer."""
    need("cmake", "g++", "make", package="cmake g++ make")
    folder = REPOSITORY / "build" / "kernels-sanitized"
    for target in TARGETS:
        build(folder, target, *WITHOUT, *SANITIZED)
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
