# SPDX-License-Identifier: Apache-2.0
"""What the binding hands to the kernels, for the CPU and for CUDA, without ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from tests.plugins.native import need, run


def test_its_own_tests_pass(native_build: Path) -> None:
    need("ctest", package="cmake")
    options = ("--output-on-failure", "--no-tests=error", "-R", "^onnxruntime$")
    run("ctest", "--test-dir", native_build, *options)
