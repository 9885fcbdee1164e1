# SPDX-License-Identifier: Apache-2.0
"""The small model's decoder in ONNX Runtime, without our library and with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tc_export.engine.onnxruntime import OrtEngine
from tc_export.native.find import find_native_library
from tests.exported import Exported


@pytest.fixture(params=["functions", "native"])
def native_library(request: pytest.FixtureRequest) -> Path | None:
    """None, and then our library."""
    if request.param == "functions":
        return None
    found = find_native_library()
    if found is None or not found.has_onnxruntime_ops:
        pytest.skip("the native library is not built: make setup, with CMake and a compiler")
    return found.path


@pytest.fixture
def either_engine(native_library: Path | None, exported: Exported) -> OrtEngine:
    """Without our library, and with it."""
    return OrtEngine(exported.graph("decoder"), native_library=native_library, threads=1)
