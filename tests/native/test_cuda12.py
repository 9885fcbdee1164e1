# SPDX-License-Identifier: Apache-2.0
"""The kernels are of a language that CUDA 12.6 compiles, as JetPack 6.2's own nvcc will.

The package registry has no nvcc 12. It has the same compiler as a library for device code, NVRTC:
it is given the four files whole, with the headers of `cuda12/` in the place of the host's.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from tests.plugins.native import PLUGINS, fetched

KERNELS = {  # how many of them there are in each file
    "decode.cu": 30,
    "interface.cu": 0,
    "prefill.cu": 20,
    "rotate_and_store.cu": 6,
    "store_int8.cu": 2,
}
OPTIONS = ("--gpu-architecture=sm_87", "--std=c++17", "--device-as-default-execution-space", "-w")
STAND_INS = Path(__file__).with_name("cuda12")


class Nvrtc:
    """CUDA 12.6's compiler of device code, opened as a library."""

    def __init__(self, folder: Path) -> None:
        libraries = folder / "cuda_nvrtc" / "lib"
        ctypes.CDLL(str(libraries / "libnvrtc-builtins.so.12.6"), mode=ctypes.RTLD_GLOBAL)
        self._library = ctypes.CDLL(str(libraries / "libnvrtc.so.12"))
        places = [PLUGINS / x for x in ("include", "generated", "kernels/ptx", "kernels")]
        places += [STAND_INS, folder / "cuda_cccl" / "include"]
        self._options = [*OPTIONS, *(f"-I{place}" for place in places)]

    def version(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def compile(self, source: bytes) -> bytes:
        """Machine code of a source file; an assertion shows what the compiler says."""
        program = ctypes.c_void_p()
        self._library.nvrtcCreateProgram(ctypes.byref(program), source, b"source", 0, None, None)
        options = [option.encode() for option in self._options]
        array = (ctypes.c_char_p * len(options))(*options)
        failed = self._library.nvrtcCompileProgram(program, len(options), array)
        assert not failed, self._text(program, "ProgramLog").decode()
        return self._text(program, "CUBIN")

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(self._library, f"nvrtcGet{what}")(program, text)
        return text.raw


@pytest.fixture(scope="module")
def nvrtc() -> Nvrtc:
    return Nvrtc(fetched("nvrtc-12.6"))


def test_every_file_of_kernels_is_compiled_here() -> None:
    assert {path.name for path in (PLUGINS / "kernels").glob("*.cu")} == set(KERNELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_cuda_12_compiles_the_kernels_for_orin(nvrtc: Nvrtc, name: str) -> None:
    assert nvrtc.version() == (12, 6)
    code = nvrtc.compile((PLUGINS / "kernels" / name).read_bytes())
    assert len(set(re.findall(rb"\.text\.(\w+)", code))) == KERNELS[name]


def test_what_cuda_12_does_not_know_is_refused(nvrtc: Nvrtc) -> None:
    with pytest.raises(AssertionError, match="not_of_this_cuda"):
        nvrtc.compile(b"__global__ void kernel() { not_of_this_cuda(); }")
