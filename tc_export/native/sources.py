# SPDX-License-Identifier: Apache-2.0
"""The files that the TensorRT plugin library is compiled from, and nothing else below `plugins/`.

They decide the key under which a built library is kept: a change in one of them builds the library
again, and engines with it; a change in a README, a test or the CPU's kernels does not. A test holds
this list to what the compiler reads.
"""

from __future__ import annotations

from pathlib import Path

SOURCES: dict[str, tuple[str, ...]] = {  # names in each folder; folders below it have their own
    ".": ("CMakeLists.txt", "CMakePresets.json", "status.cpp"),
    "cmake": ("*.cmake",),
    "generated": ("*.h",),
    "include": ("*.h",),
    "jetson": ("*.cmake",),
    "kernels": ("CMakeLists.txt", "*.cu", "*.cuh", "*.h"),
    "kernels/ptx": ("*.cuh",),
    "tensorrt": ("CMakeLists.txt", "*.cpp", "*.h"),
}


def library_sources(plugins: Path) -> list[Path]:
    """The source files in the folder `plugins`, relative to it and sorted."""
    found = {
        file.relative_to(plugins)
        for folder, patterns in SOURCES.items()
        for pattern in patterns
        for file in (plugins / folder).glob(pattern)
    }
    return sorted(found)
