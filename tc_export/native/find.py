# SPDX-License-Identifier: Apache-2.0
"""Finding and loading the compiled ops (`libtc_ops`): the CPU kernels and ONNX Runtime's bindings.

The library is looked for beside this file, where a wheel carries it, and in the build folders of a
source checkout. A library of another version is refused, since its ops may be of another contract.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tc_export.errors import UnsupportedEnvironment

_HERE = Path(__file__).resolve().parent
_FILE_NAME = {"darwin": "libtc_ops.dylib", "win32": "tc_ops.dll"}.get(sys.platform, "libtc_ops.so")

_BUILD = _HERE.parents[1] / "build"
SEARCH_FOLDERS = (
    _HERE,  # installed by a wheel
    _BUILD / "native" / "cpu",  # `cmake --preset native` in a checkout
    _BUILD / "editable" / "cpu",  # `pip install -e`, which may have another generator
)

_BUILD_HINT = (
    "build it with CMake and a C++ compiler: cmake --preset native -S plugins && "
    "cmake --build build/native --target tc_ops"
)


@dataclass(frozen=True, kw_only=True)
class NativeLibrary:
    """The compiled ops, loaded."""

    path: Path
    handle: ctypes.CDLL
    has_onnxruntime_ops: bool  # False where it was built without ONNX Runtime's headers


def load_native_library(path: Path) -> NativeLibrary:
    """Load the library at `path`, and check that it is ours and of our version.

    Raises:
        UnsupportedEnvironment: it cannot be loaded here, is another library, or of another version.
    """
    path = path.resolve()
    if not path.is_file():
        raise UnsupportedEnvironment(f"there is no native library at {path}", hint=_BUILD_HINT)
    try:
        handle = ctypes.CDLL(str(path))
        found_version = handle.tc_ops_version
    except (OSError, AttributeError) as error:
        raise UnsupportedEnvironment(
            f"{path} is not a tc-export library for this machine: {error}", hint=_BUILD_HINT
        ) from error
    found_version.restype = ctypes.c_char_p
    found, expected = found_version().decode(), version("tc-export")
    if found != expected:
        raise UnsupportedEnvironment(
            f"{path} is of version {found}; this is tc-export {expected}",
            hint=_BUILD_HINT,
        )
    return NativeLibrary(
        path=path, handle=handle, has_onnxruntime_ops=hasattr(handle, "RegisterCustomOps")
    )


def find_native_library(
    folders: Sequence[Path] = SEARCH_FOLDERS,
) -> NativeLibrary | None:
    """Load the first library that is there, or return None when none was built.

    Raises:
        UnsupportedEnvironment: there is one, and it is not usable.
    """
    for folder in folders:
        path = folder / _FILE_NAME
        if path.is_file():
            return load_native_library(path)
    return None


def require_native_library(folders: Sequence[Path] = SEARCH_FOLDERS) -> NativeLibrary:
    """Load the library, or say where it was looked for and how to build it.

    Raises:
        UnsupportedEnvironment: there is none, or it is not usable.
    """
    library = find_native_library(folders)
    if library is None:
        looked = ", ".join(str(folder) for folder in folders)
        raise UnsupportedEnvironment(f"no {_FILE_NAME} in {looked}", hint=_BUILD_HINT)
    return library
