# SPDX-License-Identifier: Apache-2.0
"""What the compiled CUDA code says of itself: tensor cores in the main loop, and no spills."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.native import REPOSITORY, need, run

SMS = ("80", "120")
SCRIPTS = REPOSITORY / "scripts"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The report of two SMs: the oldest, and one with the least shared memory."""
    need("nvcc", "g++", package="nvidia-cuda-toolkit g++")
    printed = run(sys.executable, SCRIPTS / "kernel_report.py", "--json", "--sm", *SMS)
    parsed: list[Row] = json.loads(printed)
    return parsed


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import kernel_roofline

    return kernel_roofline


@pytest.mark.slow
def test_every_kernel_is_there_on_every_sm(rows: list[Row]) -> None:
    types = ("float16", "bfloat16")
    attention = {
        f"{kind}<{dtype}, {size}>"
        for kind in ("prefill_attention", "decode_attention", "merge_splits")
        for dtype in (*types, *(f"{each}, int8" for each in types if kind != "merge_splits"))
        for size in (64, 80, 96, 128, 256)
    }
    storing = {f"store_int8<{each}>" for each in types}
    rotation = {
        f"rotate_and_store<{dtype}, {width}>"
        for dtype, widest in (("float16", 8), ("bfloat16", 8), ("float32", 4))
        for width in (1, widest)
    }
    for sm in SMS:
        assert {row["kernel"] for row in rows if row["sm"] == int(sm)} == (
            attention | rotation | storing
        )


@pytest.mark.slow
def test_no_kernel_spills_and_all_fit_an_sm(rows: list[Row]) -> None:
    for row in rows:
        assert row["spill_bytes"] == 0, row
        assert row["registers"] <= 255, row
        assert row["shared_bytes"] <= 99 * 1024, row
        assert 0 < row["occupancy"] <= 1, row


@pytest.mark.slow
def test_main_loops_run_on_tensor_cores(rows: list[Row]) -> None:
    """As many instructions as the products need: two, of 16 x 8 x 16 each."""
    keys_of_a_warp = {64: 64, 80: 64, 96: 32, 128: 32, 256: 32}
    for row in rows:
        if row["kernel"].startswith("store_int8"):
            continue
        kind, size = row["kernel"].split("<")[0], int(row["kernel"].split(", ")[-1].rstrip(">"))
        tiles, keys = (2 if size <= 128 else 1), keys_of_a_warp.get(size, 0)
        if kind == "decode_attention":
            tiles, keys = 1, 16
        needed = 2 * tiles * (keys // 8) * (size // 16) if "attention" in kind else 0
        assert row["tensor_core_instructions"] == needed, row


@pytest.mark.slow
def test_the_page_says_what_the_code_says(rows: list[Row]) -> None:
    page = (REPOSITORY / "docs" / "kernels.md").read_text()
    if run("nvcc", "--version").find("V13.0.88") < 0:
        pytest.skip("the page's figures are of nvcc 13.0.88")
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    header = next(line for line in page.splitlines() if line.startswith("| kernel | shared"))
    column = {name.strip(): i for i, name in enumerate(header.split("|"))}
    for row in rows:
        if "bfloat16" in row["kernel"]:
            continue
        cells = next(line for line in lines if f"`{row['kernel']}`" in line).split("|")
        said = cells[column[str(row["sm"])]].strip()
        assert said == f"{row['registers']}, {row['occupancy']:.0%}", row["kernel"]


@pytest.mark.slow
def test_the_page_says_what_the_kernels_do(rows: list[Row]) -> None:
    page = (REPOSITORY / "docs" / "kernels.md").read_text()
    for row in rows:
        if "bfloat16" in row["kernel"]:
            continue
        operations, moved = (row["roofline"][name] / 1e6 for name in ("operations", "bytes"))
        assert f"| `{row['kernel']}` | {operations:,.1f} | {moved:,.2f} |" in page


def test_occupancy_by_arithmetic(arithmetic: Any) -> None:
    limits = arithmetic.LIMITS[86]
    # Two blocks of 49 + 1 KiB fill the 100 KiB; a byte more, and only one fits.
    assert arithmetic.occupancy(limits, 128, 128, 49 * 1024) == pytest.approx(8 / 48, abs=1e-3)
    assert arithmetic.occupancy(limits, 128, 128, 49 * 1024 + 1) == pytest.approx(4 / 48, abs=1e-3)
    # 168 registers: 12 warps; 169 are handed out as 176: 11 warps, so two blocks of four.
    assert arithmetic.occupancy(limits, 128, 168, 0) == pytest.approx(12 / 48, abs=1e-3)
    assert arithmetic.occupancy(limits, 128, 169, 0) == pytest.approx(8 / 48, abs=1e-3)
    # 16 blocks at most.
    assert arithmetic.occupancy(limits, 32, 16, 0) == pytest.approx(16 / 48, abs=1e-3)


def test_work_is_counted_from_the_mask(arithmetic: Any) -> None:
    ends = arithmetic.prefix_lengths()
    assert len(ends) == arithmetic.TOKENS == 2368
    assert (ends[0], ends[31], ends[32], ends[175], ends[176]) == (1, 32, 176, 176, 320)
    assert (ends[2335], ends[2336], ends[-1]) == (2336, 2337, 2368)
    # Tiles of one row and one key have nothing masked in them: 4 D operations a pair.
    one_by_one = {"rows": 1, "keys": 1}
    work = arithmetic.work_of("prefill_attention", 128, one_by_one)
    assert work.operations == 4 * 128 * 32 * sum(ends)
    assert work.bytes == 2 * 128 * 2368 * (2 * 32 + 2 * 8)
    # The rotation reads and writes q, k and v.
    moved = arithmetic.work_of("rotate_and_store", 1, None, element_bytes=4).bytes
    assert moved == 4 * 128 * 2368 * 2 * (32 + 8 + 8)


def test_roofline_takes_the_larger_bound(arithmetic: Any) -> None:
    orin = {b.target: b for b in arithmetic.roofline(87, arithmetic.Work(43e12, 1.0)).bounds}[
        "orin"
    ]
    assert (orin.least_us, orin.bound) == (1e6, "arithmetic")
    orin = {b.target: b for b in arithmetic.roofline(87, arithmetic.Work(1.0, 205e9)).bounds}[
        "orin"
    ]
    assert (orin.least_us, orin.bound) == (1e6, "memory")


def test_a_missing_compiler_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="error: nvcc is not on PATH"):
        run(sys.executable, SCRIPTS / "kernel_report.py", "--json")
