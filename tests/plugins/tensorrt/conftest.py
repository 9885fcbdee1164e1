# SPDX-License-Identifier: Apache-2.0
"""The plugin library over host kernels, built once for the whole folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tc_export.native.build import build_plugins
from tc_export.targets import load_target
from tests.plugins.native import REPOSITORY, build, fetched, need


def build_on_host(target: str) -> Path:
    """Build a target for this machine, without CUDA, and return the build folder."""
    need("cmake", "g++", "make", package="cmake g++ make")
    folder = REPOSITORY / "build" / "tensorrt-host"
    build(
        folder,
        target,
        "-DTC_ENABLE_CUDA=OFF",
        f"-DTENSORRT_ROOT={fetched('tensorrt-headers')}",
        f"-DTC_CUDA_INCLUDE={fetched('cuda-headers')}",
    )
    return folder


@pytest.fixture(scope="session")
def host_build() -> Path:
    """A build folder with the plugin over host kernels, and its tests."""
    return build_on_host("tensorrt_host_tests")


@pytest.fixture(scope="session")
def cuda_plugin() -> Path:
    """The plugin library with CUDA code for SM 89, as a build of the target has it."""
    need("cmake", "g++", "make", package="cmake g++ make")
    if shutil.which("nvcc") is None:
        fetched("nvcc")
    fetched("tensorrt-headers")
    return build_plugins(load_target("rtx4090")).path


@pytest.fixture(scope="session")
def emulated_build() -> Path:
    """A build folder with the plugin over the emulated CUDA kernels, and its tests."""
    return build_on_host("tensorrt_emulated_tests")


@pytest.fixture(scope="session")
def host_plugin(host_build: Path) -> Path:
    """The plugin library over host kernels."""
    return host_build / "tests" / "tensorrt" / "libtc_tensorrt_host.so"
