# SPDX-License-Identifier: Apache-2.0
"""The list of sources against what the compiler and CMake read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tc_export.native.sources import library_sources
from tests.plugins.native import PLUGINS, need, run

LISTED = {source.as_posix() for source in library_sources(PLUGINS)}
CMAKE = {source for source in LISTED if source.endswith(("CMakeLists.txt", ".cmake", ".json"))}


def read_by(rule: str) -> set[str]:
    """The files below `plugins/` in a dependency file's rule, but for those removed since."""
    words = rule.partition(":")[2].replace("\\\n", " ").split()
    files = (Path(word).resolve() for word in words)
    return {
        file.relative_to(PLUGINS).as_posix()
        for file in files
        if PLUGINS in file.parents and file.is_file()
    }


def depfiles(build: Path, *targets: str) -> Iterable[str]:
    """The rules that the compiler wrote down while it built these targets."""
    for target in targets:
        rules = list(build.rglob(f"{target}.dir/**/*.o.d"))
        assert rules, f"{build} has no dependency file of {target}"
        yield from (rule.read_text() for rule in rules)


def test_every_file_that_the_compiler_reads_is_listed(
    host_build: Path, emulated_build: Path
) -> None:
    """The binding as it was compiled on this host, and the kernels' five files.

    On the host the kernels are compiled for the emulator; for a GPU they read `kernels/ptx` in its
    place, which the preprocessor is asked for.
    """
    rules = [
        *depfiles(host_build, "tc_tensorrt_binding", "tc_status"),
        *depfiles(emulated_build, "tc_kernels_emulated"),
    ]
    read = {file for rule in rules for file in read_by(rule)}
    kernels = {file for file in read if file.endswith(".cu")}
    folders = ("kernels/ptx", "kernels", "include", "generated")
    includes = [f"-I{PLUGINS / folder}" for folder in folders]
    for kernel in kernels:  # -MG: CUDA's own headers need not be here
        rule = run("g++", "-std=c++17", "-x", "c++", "-MM", "-MG", *includes, PLUGINS / kernel)
        read |= read_by(rule)

    read = {file for file in read if not file.startswith("emulator/")}
    assert len(kernels) == 5
    assert read == LISTED - CMAKE


def test_every_file_that_cmake_reads_for_the_library_is_listed(tmp_path: Path) -> None:
    """The other parts' own files are read, too, but add nothing to the library."""
    need("cmake", "g++", "make", package="cmake g++ make")
    options = ("-DTC_ENABLE_CUDA=OFF", "-DBUILD_TESTING=OFF", "-DTC_FETCH_ONNXRUNTIME=OFF")
    run("cmake", "-S", PLUGINS, "-B", tmp_path, *options)
    makefile = (tmp_path / "CMakeFiles" / "Makefile.cmake").read_text()
    names = re.findall(rf'"{re.escape(str(PLUGINS))}/([^"]+)"', makefile)
    others = ("cpu", "emulator", "onnxruntime")
    read = {name for name in names if name.split("/")[0] not in others}
    assert {"CMakeLists.txt", "kernels/CMakeLists.txt", "tensorrt/CMakeLists.txt"} <= read
    assert read <= CMAKE
    assert CMAKE - read == {"CMakePresets.json", "jetson/toolchain.cmake"}  # by option
