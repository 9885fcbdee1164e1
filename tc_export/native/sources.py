# SPDX-License-Identifier: Apache-2.0
"""The files that the TensorRT plugin library is compiled from, and nothing else below `plugins/`.

They decide the key under which a built library is kept: a change in one of them builds the library
again, and engines with it; a change in a README, a test or the CPU's kernels does not. A bundle
whose device compiles the library itself carries these files. A test holds this list to what the
compiler reads.
"""

from __future__ import annotations

import hashlib
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


def sources_digest(plugins: Path) -> str:
    """Hash of the names and contents of the source files in the folder `plugins`."""
    digest = hashlib.sha256()
    for source in library_sources(plugins):
        content = (plugins / source).read_bytes()
        digest.update(f"{source.as_posix()}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
