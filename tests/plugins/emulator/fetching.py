# SPDX-License-Identifier: Apache-2.0
"""Wheels of the package registry that a test reads files from, without installing them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.native import REPOSITORY, alone


def wheel(requirement: str) -> Path:
    """The wheel of `requirement` in the cache, fetched if need be; skip where it cannot be had."""
    folder = REPOSITORY / ".cache" / "wheels" / requirement.replace("==", "-")
    with alone(folder):
        if not list(folder.glob("*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
            done = subprocess.run(
                [*command, "--dest", str(folder), requirement],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                pytest.skip(f"{requirement} cannot be fetched: {done.stderr.strip()[-200:]}")
    return next(folder.glob("*.whl"))
