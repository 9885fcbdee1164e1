# SPDX-License-Identifier: Apache-2.0
"""The kernels' own tests (plugins/tests/kernels), plain, sanitized, and against CuTe's layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.native import build, need, run


def test_kernels_agree_with_float64_under_every_schedule(emulated_build: Path) -> None:
    tests = emulated_build / "tests" / "kernels"
    printed = run("ctest", "--test-dir", tests, "--output-on-failure", "-R", "^kernels_")
    assert "100% tests passed" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "cases"),
    [
        ("tc_emulator_test", ()),
        ("tc_kernels_rotate_test", ()),
        *(("tc_kernels_attention_test", (f"D={size}",)) for size in (64, 80, 96, 128, 256)),
    ],
)
def test_kernels_touch_nothing_that_is_not_theirs(
    sanitized_build: Path, program: str, cases: tuple[str, ...]
) -> None:
    assert "\n0 failures" in "\n" + run(sanitized_build / "tests" / "kernels" / program, *cases)


def test_fragments_lie_where_cute_says(emulated_build: Path, cutlass_include: Path) -> None:
    need("nvcc", package="nvidia-cuda-toolkit, for CUDA's headers")
    build(emulated_build, "tc_fragment_test", f"-DTC_CUTLASS_INCLUDE={cutlass_include}")
    assert "0 failures" in run(emulated_build / "tests" / "kernels" / "tc_fragment_test")
