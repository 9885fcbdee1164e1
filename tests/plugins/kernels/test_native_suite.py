# SPDX-License-Identifier: Apache-2.0
"""The kernels' own tests (plugins/tests/kernels), plain and sanitized."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.native import run


def test_kernels_agree_with_float64_under_every_schedule(emulated_build: Path) -> None:
    tests = emulated_build / "tests" / "kernels"
    printed = run("ctest", "--test-dir", tests, "--output-on-failure", "-R", "^kernels_")
    assert "100% tests passed" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "cases"),
    [
        ("tc_kernels_rotate_test", ()),
        *(
            (f"tc_kernels_{program}_test", (f"D={size}",))
            for program in ("attention", "attention_int8")
            for size in (64, 80, 96, 128, 256)
        ),
    ],
)
def test_kernels_touch_nothing_that_is_not_theirs(
    sanitized_build: Path, program: str, cases: tuple[str, ...]
) -> None:
    assert "\n0 failures" in "\n" + run(sanitized_build / "tests" / "kernels" / program, *cases)
