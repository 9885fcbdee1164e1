# SPDX-License-Identifier: Apache-2.0
"""Cross-compiling for Jetson: the real library's contents, and the plugins' life under qemu."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugins.native import PLUGINS, REPOSITORY, build, fetched, need, run
from tests.plugins.tensorrt.elf import functions, machine, needed, newest_version
from tests.plugins.tensorrt.test_on_host import ENTRY_POINTS, passed

pytestmark = pytest.mark.slow

# The oldest system that the library must load on: Ubuntu 22.04, under JetPack 6.
JETPACK_6 = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30)}


def cross_options() -> tuple[str, ...]:
    """CMake's options for a cross build; skip where its compiler is not installed."""
    need("cmake", "make", "aarch64-linux-gnu-g++", package="cmake make g++-aarch64-linux-gnu")
    cuda = fetched("cuda-aarch64")
    return (
        f"-DTC_CUDA_AARCH64={cuda}",
        f"-DTC_CUDA_INCLUDE={cuda}/include",
        f"-DTENSORRT_ROOT={fetched('tensorrt-headers')}",
    )


def test_the_plugins_live_on_aarch64() -> None:
    need("qemu-aarch64", package="qemu-user")
    folder = REPOSITORY / "build" / "jetson-host"
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={PLUGINS / 'jetson' / 'toolchain.cmake'}"
    build(folder, "tensorrt_host_tests", toolchain, "-DTC_ENABLE_CUDA=OFF", *cross_options())
    library = folder / "tests" / "tensorrt" / "libtc_tensorrt_host.so"
    assert machine(library) == "AArch64"
    assert passed(folder, "host") == {"plugin_life.host", "plugin_enqueue.host"}


@pytest.fixture(scope="module")
def jetson_library() -> Path:
    """The library with CUDA code, built by the preset of the documentation."""
    need("nvcc", package="nvidia-cuda-toolkit, or NVIDIA's own package")
    folder = REPOSITORY / "build" / "jetson-cross"
    build(folder, "tc_tensorrt", "--preset", "jetson-cross", *cross_options())
    return folder / "tensorrt" / "libtc_tensorrt.so"


def test_the_library_is_for_jetson(jetson_library: Path) -> None:
    assert machine(jetson_library) == "AArch64"
    assert functions(jetson_library) == ENTRY_POINTS
    # CUDA's runtime is inside; the driver's library is opened when it is first called.
    assert needed(jetson_library) <= {
        "libstdc++.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libc.so.6",
        "ld-linux-aarch64.so.1",
    }
    for family, newest in JETPACK_6.items():
        assert newest_version(jetson_library, family) <= newest


def test_the_library_has_code_for_orin_and_thor(jetson_library: Path) -> None:
    listing = run(fetched("cuobjdump") / "cuobjdump", "--list-elf", jetson_library)
    architectures = re.findall(r"\.(sm_\d+)\.cubin", listing)
    assert set(architectures) == {"sm_87", "sm_110"}
    assert architectures.count("sm_87") == architectures.count("sm_110")
