# SPDX-License-Identifier: Apache-2.0
"""The CPU library's build folder with the binding's own tests, built once for the whole folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tc_export.native.find import load_native_library
from tests.plugins.cpu.library import BUILD
from tests.plugins.native import build, need


@pytest.fixture(scope="session")
def native_build() -> Path:
    need("cmake", "g++", "make", package="cmake g++ make")
    build(BUILD, "tc_ops", "-DTC_ENABLE_CUDA=OFF")
    if not load_native_library(BUILD / "cpu" / "libtc_ops.so").has_onnxruntime_ops:
        pytest.skip("the library was built without ONNX Runtime's headers")
    build(BUILD, "tc_onnxruntime_tests", "-DTC_ENABLE_CUDA=OFF")
    return BUILD
