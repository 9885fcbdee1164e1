# SPDX-License-Identifier: Apache-2.0
"""Building the native parts for a test, and fetching what that needs."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tc_export.errors import UnsupportedEnvironment
from tc_export.native.fetch import fetch
from tests.repository import REPOSITORY

PLUGINS = REPOSITORY / "plugins"


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command to its end and return what it printed; a failure shows all of it."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout


def need(*programs: str, package: str) -> None:
    """Skip the test where one of the programs is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install {package})")


def fetched(name: str) -> Path:
    """The folder of a package of `tc_export.native.fetch`; skip where it cannot be had."""
    try:
        return fetch(name)
    except UnsupportedEnvironment as error:
        pytest.skip(str(error))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a build folder for this process: tests may run in several."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(folder: Path, target: str, *options: str) -> None:
    """Configure `plugins/` in `folder` and build one target; quick where nothing has changed."""
    with alone(folder):
        run("cmake", "-S", PLUGINS, "-B", folder, *options, cwd=PLUGINS)
        run("cmake", "--build", folder, "--target", target)
