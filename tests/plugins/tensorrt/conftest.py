# SPDX-License-Identifier: Apache-2.0
"""The plugin library over host kernels, built once for the whole folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.tensorrt.native import REPOSITORY, build, fetched, need


@pytest.fixture(scope="session")
def host_build() -> Path:
    """A build folder with the plugin over host kernels and its tests."""
    need("cmake", "g++", "make", package="cmake g++ make")
    folder = REPOSITORY / "build" / "tensorrt-host"
    build(
        folder,
        "tensorrt_tests",
        "-DTC_ENABLE_CUDA=OFF",
        f"-DTENSORRT_ROOT={fetched('tensorrt-headers')}",
        f"-DTC_CUDA_INCLUDE={fetched('cuda-headers')}",
    )
    return folder


@pytest.fixture(scope="session")
def host_plugin(host_build: Path) -> Path:
    """The plugin library over host kernels."""
    return host_build / "tests" / "tensorrt" / "libtc_tensorrt_host.so"
