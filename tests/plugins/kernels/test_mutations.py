# SPDX-License-Identifier: Apache-2.0
"""The tests of the kernels notice what is wrong: one fault at a time is patched into a copy."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.plugins.native import PLUGINS, REPOSITORY, alone, need, run

ATTENTION, ROTATE = "tc_kernels_attention_test", "tc_kernels_rotate_test"
INT8 = "tc_kernels_attention_int8_test"
CHUNKS, SPLIT = "in chunks, then decode float16 D=64", "split decode of different lengths"
REUSE = "full visual, float16 D=64"  # more tiles than the ring has places
EDGES = "decode at the edges of tiles, float16 D=64"
FRAMES = "frames that end at the edges of tiles, float16 D=64"  # of tiles and of the cache
KINDS = "rows of every kind, float16 D=64"
FOLDERS = ("include", "kernels", "emulator", "tests/kernels")


pytestmark = pytest.mark.slow


@dataclass(frozen=True, kw_only=True)
class Fault:
    """`found` becomes `wrong` in a kernel source; the test must then print `complaint`."""

    name: str
    source: str
    found: str
    wrong: str
    complaint: str
    program: str = ATTENTION
    case: str = CHUNKS


FAULTS = (
    Fault(
        name="missing wait",
        source="tile_ring.cuh",
        found="wait_copies<Stages - 2>();",
        wrong="",
        complaint="missing wait",
    ),
    Fault(
        name="wait one group short",
        source="tile_ring.cuh",
        found="wait_copies<Stages - 2>();",
        wrong="wait_copies<Stages - 1>();",
        complaint="missing wait",
    ),
    Fault(
        name="missing barrier in the ring",
        source="tile_ring.cuh",
        found="    __syncthreads();\n    start_load(tile + Stages - 1);",
        wrong="    start_load(tile + Stages - 1);",
        complaint="data race",
    ),
    Fault(
        name="load before the barrier",
        source="tile_ring.cuh",
        found="    __syncthreads();\n    start_load(tile + Stages - 1);",
        wrong="    start_load(tile + Stages - 1);\n    __syncthreads();",
        complaint="data race",
        case=REUSE,
    ),
    Fault(
        name="missing barrier before the sums",
        source="decode.cuh",
        found="  __syncthreads();  // the sums lie where the ring was\n",
        wrong="",
        complaint="data race",
    ),
    Fault(
        name="missing barrier after the sums",
        source="decode.cuh",
        found="  __syncthreads();\n  write_rows",
        wrong="  write_rows",
        complaint="data race",
    ),
    Fault(
        name="a key too many",
        source="attention_tile.cuh",
        found="e % 2 >= ends[m][e / 2]",
        wrong="e % 2 > ends[m][e / 2]",
        complaint="expected",
    ),
    Fault(
        name="a key too few",
        source="attention_tile.cuh",
        found="return max(0, min(end, p.cache_rows));",
        wrong="return max(0, min(end - 1, p.cache_rows));",
        complaint="expected",
    ),
    Fault(
        name="mask skipped a tile too long",
        source="prefill.cuh",
        found="(tile + 1) * kKeys > range.fewest",
        wrong="tile * kKeys > range.fewest",
        complaint="expected",
    ),
    Fault(
        name="wrong register of the weights",
        source="attention_tile.cuh",
        found="weights[m][n / 2][n % 2 * 2 + half]",
        wrong="weights[m][n / 2][n % 2 + half * 2]",
        complaint="expected",
    ),
    Fault(
        name="wrong row of a key fragment",
        source="attention_tile.cuh",
        found="n * 8 + lane / 16 * 8 + lane % 8;",
        wrong="n * 8 + lane / 8 % 2 * 8 + lane % 8;",
        complaint="expected",
    ),
    Fault(
        name="store past the last row",
        source="prefill.cuh",
        found="    if (row >= p.tokens * p.group) continue;\n",
        wrong="",
        complaint="out of bounds: write",
    ),
    Fault(
        name="slot past the cache",
        source="rotate_and_store.cuh",
        found=" && slot < p.cache_rows",
        wrong="",
        complaint="out of bounds: write",
    ),
    Fault(
        name="keys past the end are loaded",
        source="attention_tile.cuh",
        found="const bool valid = row < valid_rows;",
        wrong="const bool valid = row <= valid_rows;",
        complaint="out of bounds: read",
    ),
    Fault(
        name="splits overlap",
        source="decode.cuh",
        found="min(tiles_per_split, all_tiles - first_tile)",
        wrong="min(tiles_per_split + 1, all_tiles - first_tile)",
        complaint="expected",
        case=SPLIT,
    ),
    Fault(
        name="a split forgotten",
        source="decode.cuh",
        found="for (int split = 0; split < p.splits; ++split) {\n      const float weight",
        wrong="for (int split = 1; split < p.splits; ++split) {\n      const float weight",
        complaint="expected",
        case=SPLIT,
    ),
    Fault(
        name="position made an integer",
        source="rotate_and_store.cuh",
        found="add_rounded(n, multiply_rounded(p.gamma, t))",
        wrong="floorf(add_rounded(n, multiply_rounded(p.gamma, t)))",
        complaint="off by",
        program=ROTATE,
    ),
    Fault(
        name="turned the other way",
        source="rotate_and_store.cuh",
        found="b * turn.cosine[i] + a * turn.sine[i]",
        wrong="b * turn.cosine[i] - a * turn.sine[i]",
        complaint="off by",
        program=ROTATE,
    ),
)

INT8_FAULTS = (
    Fault(
        name="codes not waited for",
        source="tile_ring.cuh",
        found="wait_copies<Stages - 1>();",
        wrong="wait_copies<Stages>();",
        complaint="missing wait",
    ),
    Fault(
        name="numbers made too early",
        source="tile_ring.cuh",
        found="    __syncthreads();  // all copies have landed; no thread still reads the numbers "
        "before these\n",
        wrong="",
        complaint="data race",
    ),
    Fault(
        name="numbers read too early",
        source="tile_ring.cuh",
        found="    __syncthreads();  // all threads have made theirs\n",
        wrong="",
        complaint="data race",
    ),
    Fault(
        name="codes loaded into the place of those in use",
        source="tile_ring.cuh",
        found="    make_numbers();\n",
        wrong="    start_load(tile + Stages);\n    make_numbers();\n",
        complaint="missing wait",
        case=REUSE,
    ),
    Fault(
        name="codes past the end are loaded",
        source="tile_ring.cuh",
        found="const bool valid = chunk / kChunks < end - first;",
        wrong="const bool valid = chunk / kChunks <= end - first;",
        complaint="out of bounds: read",
        case=FRAMES,
    ),
    Fault(
        name="scales past the end are read",
        source="tile_ring.cuh",
        found="const bool valid = thread < end - first;",
        wrong="const bool valid = thread <= end - first;",
        complaint="expected",
    ),
    Fault(
        name="scale of the neighbouring row",
        source="tile_ring.cuh",
        found="load_shared(scales(tile) + row)",
        wrong="load_shared(scales(tile) + (row ^ 1))",
        complaint="expected",
    ),
    Fault(
        name="scales of the next tile",
        source="tile_ring.cuh",
        found="load_shared(scales(tile) + row)",
        wrong="load_shared(scales(tile + 1) + row)",
        complaint="missing wait",
    ),
    Fault(
        name="keys' scales for values",
        source="tile_ring.cuh",
        found="(index % 2 == 0 ? key_scales : value_scales) + first;",
        wrong="key_scales + first;",
        complaint="expected",
    ),
    Fault(
        name="scales of keys and values swapped",
        source="interface.cu",
        found="{args->present_key_scale, args->present_value_scale}",
        wrong="{args->present_value_scale, args->present_key_scale}",
        complaint="expected",
    ),
    Fault(
        name="codes without a sign",
        source="tile_ring.cuh",
        found="(word ^ 0x80808080u)",
        wrong="word",
        complaint="expected",
    ),
    Fault(
        name="halves of a piece swapped",
        source="tile_ring.cuh",
        found="from.values[half * 2 + i / 2]",
        wrong="from.values[2 - half * 2 + i / 2]",
        complaint="expected",
    ),
    Fault(
        name="cache of another head",
        source="store_int8.cuh",
        found="const int64_t place = head * p.cache_rows + slot;",
        wrong="const int64_t place = head / 2 * p.cache_rows + slot;",
        complaint="the cache is not as expected",
        case=EDGES,
    ),
    Fault(
        name="slots of another sequence",
        source="store_int8.cuh",
        found="head / p.kv_heads * p.tokens",
        wrong="head % p.kv_heads * p.tokens",
        complaint="the cache is not as expected",
        case=EDGES,
    ),
    Fault(
        name="the code -128",
        source="store_int8.cuh",
        found="max(-kLargestCode, ",
        wrong="max(-kLargestCode - 1, ",
        complaint="the cache is not as expected",
        case=KINDS,
    ),
    Fault(
        name="rounded to zero",
        source="store_int8.cuh",
        found="nearest_integer(divide_rounded(",
        wrong="static_cast<int>(divide_rounded(",
        complaint="the cache is not as expected",
    ),
    Fault(
        name="half of a row is not looked at",
        source="store_int8.cuh",
        found="for (int mask = 1; mask < kWarpSize; mask *= 2)",
        wrong="for (int mask = 2; mask < kWarpSize; mask *= 2)",
        complaint="the cache is not as expected",
    ),
)


OTHER_KERNELS = re.compile(
    r" *case (?:(?:80|96|128|256): return function|TC_BFLOAT16: return of_type).*\n"
)
"""In the dispatch: what is left compiles in seconds."""


@pytest.fixture(scope="session")
def copy() -> Path:
    """A copy of the sources with one head size and type, configured and built without a fault."""
    need("cmake", "g++", "make", package="cmake g++ make")
    folder = REPOSITORY / "build" / "kernels-mutants"
    with alone(folder):
        for name in FOLDERS:
            for path in (PLUGINS / name).rglob("*"):
                if path.is_file():
                    text = OTHER_KERNELS.sub("", path.read_text())
                    update(folder / "source" / path.relative_to(PLUGINS), text)
        update(folder / "source" / "CMakeLists.txt", PROJECT)
        run("cmake", "-S", folder / "source", "-B", folder, "-DCMAKE_BUILD_TYPE=Release")
        run("cmake", "--build", folder)
    return folder


PROJECT = """\
cmake_minimum_required(VERSION 3.22)
project(mutants LANGUAGES CXX)
include(CTest)
set(CMAKE_CXX_STANDARD 17)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
add_library(tc_interface INTERFACE)
target_include_directories(tc_interface INTERFACE include)
add_subdirectory(emulator)
add_subdirectory(tests/kernels)
"""


def update(path: Path, text: str) -> None:
    """Write a file unless it says that already: what has not changed is not compiled again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def run_test(folder: Path, program: str, case: str) -> subprocess.CompletedProcess[str]:
    run("cmake", "--build", folder, "--target", program)
    command = [str(folder / "tests" / "kernels" / program), case]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize(
    ("program", "case"),
    [
        *((ATTENTION, case) for case in (CHUNKS, SPLIT, REUSE)),
        *((INT8, case) for case in (CHUNKS, EDGES, FRAMES, KINDS)),
        (ROTATE, ""),
    ],
)
def test_without_a_fault_all_is_well(copy: Path, program: str, case: str) -> None:
    with alone(copy):
        done = run_test(copy, program, case)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "fault",
    [*FAULTS, *(replace(fault, program=INT8) for fault in INT8_FAULTS)],
    ids=lambda fault: fault.name.replace(" ", "-"),
)
def test_a_fault_is_noticed(copy: Path, fault: Fault) -> None:
    path = copy / "source" / "kernels" / fault.source
    with alone(copy):
        sound = path.read_text()
        assert sound.count(fault.found) == 1, f"{fault.source} has changed: adapt the fault"
        try:
            path.write_text(sound.replace(fault.found, fault.wrong))
            done = run_test(copy, fault.program, fault.case)
        finally:
            path.write_text(sound)
    assert done.returncode == 1, f"exit code {done.returncode}:\n{done.stdout}{done.stderr}"
    assert fault.complaint in done.stdout, done.stdout
