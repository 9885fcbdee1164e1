# SPDX-License-Identifier: Apache-2.0
"""The library with ONNX Runtime's ops for CUDA: what is in it, and that it serves without a GPU."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from tc_export.contracts.ops import CONTRACTS, DOMAIN
from tc_export.native.find import NativeLibrary, load_native_library
from tests.plugins.cpu import test_onnxruntime_ops as on_cpu
from tests.plugins.native import REPOSITORY, build, fetched, run
from tests.plugins.tensorrt.elf import functions, needed

pytestmark = pytest.mark.slow

SM = 80  # the PTX that all SMs share is of this one
KERNELS = {
    *("prefill_attention", "decode_attention", "merge_splits"),
    *("rotate_and_store", "store_int8"),
}


@pytest.fixture(scope="module")
def cuda_library(native_build: Path) -> NativeLibrary:
    """The preset's library, with code for one SM."""
    nvcc = shutil.which("nvcc") or fetched("nvcc") / "nvcc"
    folder = REPOSITORY / "build" / "cuda-ops"
    options = [f"-DCMAKE_CUDA_ARCHITECTURES={SM}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    headers = native_build / "onnxruntime-headers" / "usr" / "include" / "onnxruntime"
    if headers.is_dir():  # else they are the system's
        options.append(f"-DONNXRUNTIME_INCLUDE={headers}")
    build(folder, "tc_ops", "--preset", "cuda", *options)
    return load_native_library(folder / "cpu" / "libtc_ops.so")


def test_it_registers_each_op_for_the_processor_and_for_cuda(
    cuda_library: NativeLibrary, native_build: Path
) -> None:
    printed = run(native_build / "tests" / "onnxruntime" / "tc_list_ops", cuda_library.path)
    types = {
        "CPUExecutionProvider": on_cpu.TYPES.values(),
        "CUDAExecutionProvider": (on_cpu.TYPES[torch.float16], on_cpu.TYPES[torch.bfloat16]),
    }
    assert sorted(printed.splitlines()) == sorted(
        f"{provider} {DOMAIN}.{contract.name} {number}"
        for contract in CONTRACTS
        for provider, numbers in types.items()
        for number in numbers
    )


def test_it_has_the_kernels_code_for_the_sm(cuda_library: NativeLibrary) -> None:
    listing = run(fetched("cuobjdump") / "cuobjdump", "--dump-elf-symbols", cuda_library.path)
    assert set(re.findall(r"^arch = (\w+)$", listing, re.MULTILINE)) == {f"sm_{SM}"}
    entries = re.findall(r"STT_FUNC +STB_GLOBAL +STO_ENTRY +_ZN2tc\d+([a-z_]+8?)I", listing)
    assert set(entries) == KERNELS


def test_it_needs_and_exports_nothing_of_cuda(cuda_library: NativeLibrary) -> None:
    """CUDA's runtime is inside, and the driver is opened by the first call."""
    assert not any(
        "cuda" in library or "cudart" in library for library in needed(cuda_library.path)
    )
    ours = {name for name in functions(cuda_library.path) if name.startswith("tc_")}
    assert functions(cuda_library.path) == ours | {"RegisterCustomOps"}


@pytest.mark.parametrize("dtype", on_cpu.TYPES)
def test_it_serves_on_the_processor(cuda_library: NativeLibrary, dtype: torch.dtype) -> None:
    for in_place in ((True, True), (False, False)):
        on_cpu.test_attention_writes_the_cache_that_is_bound_to_the_output(
            cuda_library, dtype, in_place
        )
    on_cpu.test_rotation(cuda_library, dtype, {"attention_factor": 1.5})
