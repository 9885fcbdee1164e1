# SPDX-License-Identifier: Apache-2.0
"""Finding the library, refusing the wrong one, and its own C++ tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tc_export.errors import UnsupportedEnvironment
from tc_export.native import find as native_library
from tc_export.native.find import (
    NativeLibrary,
    find_native_library,
    load_native_library,
    require_native_library,
)
from tests.plugins.native import PLUGINS, REPOSITORY, build, fetched, need, run


def test_the_first_folder_that_has_it_wins(library: NativeLibrary, tmp_path: Path) -> None:
    packaged = tmp_path / "package"
    packaged.mkdir()
    shutil.copy(library.path, packaged)
    found = find_native_library([tmp_path / "empty", packaged, library.path.parent])
    assert found is not None
    assert found.path == packaged / library.path.name
    assert found.has_onnxruntime_ops == library.has_onnxruntime_ops


def test_none_is_an_answer_and_a_demand_says_where_it_looked(tmp_path: Path) -> None:
    assert find_native_library([tmp_path]) is None
    with pytest.raises(UnsupportedEnvironment, match=str(tmp_path)) as caught:
        require_native_library([tmp_path])
    assert "cmake" in str(caught.value.hint)


def test_what_is_not_our_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedEnvironment, match="there is no native library"):
        load_native_library(tmp_path / "libtc_ops.so")
    text = tmp_path / "libtc_ops.so"
    text.write_text("not a library")
    with pytest.raises(UnsupportedEnvironment, match="not a tc-export library"):
        load_native_library(text)


def test_another_version_is_refused(
    library: NativeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_library, "version", lambda name: "9.9.9")
    with pytest.raises(
        UnsupportedEnvironment, match=r"is of version 0\.1\.0; this is tc-export 9\.9\.9"
    ):
        load_native_library(library.path)


def test_its_own_tests_pass(native_build: Path) -> None:
    need("ctest", package="cmake")
    run("ctest", "--test-dir", native_build, "--output-on-failure", "-R", "^cpu")


@pytest.mark.slow
def test_they_pass_in_a_debug_build_under_sanitizers() -> None:
    """Where assertions are on, and a `kv_end` that is out of range is an error."""
    need("cmake", "g++", "make", "ctest", package="cmake g++ make")
    folder = REPOSITORY / "build" / "cpu-debug"
    options = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g", "-DTC_ENABLE_CUDA=OFF")
    sanitized = ("-DTC_SANITIZE=address,undefined", "-DTC_FETCH_ONNXRUNTIME=OFF")
    build(folder, "tc_cpu_tests", *options, *sanitized)
    run("ctest", "--test-dir", folder, "--output-on-failure", "-R", "^cpu")


@pytest.mark.slow
def test_they_pass_on_aarch64() -> None:
    """With NEON, under an emulator of the processor."""
    need("cmake", "make", "ctest", "aarch64-linux-gnu-g++", package="cmake g++-aarch64-linux-gnu")
    need("qemu-aarch64", package="qemu-user")
    folder = REPOSITORY / "build" / "cpu-aarch64"
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={PLUGINS / 'jetson' / 'toolchain.cmake'}"
    options = (toolchain, f"-DTC_CUDA_AARCH64={fetched('cuda-aarch64')}", "-DTC_ENABLE_CUDA=OFF")
    build(folder, "tc_cpu_tests", *options, "-DTC_FETCH_ONNXRUNTIME=OFF")
    run("ctest", "--test-dir", folder, "--output-on-failure", "-R", "^cpu")
