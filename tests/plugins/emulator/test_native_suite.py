# SPDX-License-Identifier: Apache-2.0
"""The emulator's own tests (plugins/tests/emulator): plain, sanitized, against CuTe's layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.native import build, need, run


def test_its_own_tests_pass(emulated_build: Path) -> None:
    options = ("--output-on-failure", "--no-tests=error", "-R", "^emulator$")
    run("ctest", "--test-dir", emulated_build, *options)


@pytest.mark.slow
def test_it_touches_nothing_that_is_not_its_own(sanitized_build: Path) -> None:
    program = sanitized_build / "tests" / "emulator" / "tc_emulator_test"
    assert "\n0 failures" in "\n" + run(program)


def test_fragments_lie_where_cute_says(emulated_build: Path, cutlass_include: Path) -> None:
    need("nvcc", package="nvidia-cuda-toolkit, for CUDA's headers")
    build(emulated_build, "tc_fragment_test", f"-DTC_CUTLASS_INCLUDE={cutlass_include}")
    assert "0 failures" in run(emulated_build / "tests" / "emulator" / "tc_fragment_test")
