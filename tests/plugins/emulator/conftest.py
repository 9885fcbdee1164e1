# SPDX-License-Identifier: Apache-2.0
"""The build folders of the kernels' tests, which the emulator's are in, and CuTe's headers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.plugins.emulator.fetching import wheel
from tests.plugins.kernels.conftest import emulated_build, sanitized_build
from tests.plugins.native import alone

__all__ = ["emulated_build", "sanitized_build"]

CUTLASS = "nvidia-cutlass==4.2.0.0"


@pytest.fixture(scope="session")
def cutlass_include() -> Path:
    """The include folder of CUTLASS, which CuTe's headers lie in."""
    archive = wheel(CUTLASS)
    folder = archive.parent / "cutlass"
    include = folder / "cutlass_library" / "source" / "include"
    with alone(folder):
        if not (include / "cute").is_dir():
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
    return include
