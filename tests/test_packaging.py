# SPDX-License-Identifier: Apache-2.0
"""What `pip install` makes: a wheel with the native library, and one without where it cannot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.plugins.native import need
from tests.repository import REPOSITORY, TARGETS

pytestmark = pytest.mark.slow

SOURCES = ("pyproject.toml", "README.md", "LICENSE", "tc_export", "plugins", "engines/targets")
LIBRARY = "tc_export/native/libtc_ops.so"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which nothing was built."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        if (REPOSITORY / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
        else:
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


def make_wheel(sources: Path, folder: Path, **environment: str) -> tuple[Path, str]:
    """A wheel of the sources, unpacked as `pip install` does it, and what was said meanwhile."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--verbose"]
    done = subprocess.run(
        [*pip, "--no-deps", "--wheel-dir", str(folder), str(sources)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (wheel,) = folder.glob("tc_export-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return wheel, done.stdout + done.stderr


def run_installed(wheel: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the unpacked wheel in the place of this checkout."""
    packages = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    paths = os.pathsep.join([str(wheel.parent / "installed"), *sorted(packages)])
    return subprocess.run(
        # -S: no .pth files, by which the checkout would come first.
        [sys.executable, "-S", *arguments],
        cwd=wheel.parent,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wheel_carries_the_library_and_the_targets(sources: Path, tmp_path: Path) -> None:
    need("g++", package="g++")
    wheel, said = make_wheel(sources, tmp_path)
    assert re.fullmatch(r"tc_export-[\d.]+-py3-none-\w+_\w+\.whl", wheel.name)
    assert "without its native library" not in said
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert LIBRARY in names
    assert not [name for name in names if "test" in name or name.endswith((".cu", ".cpp", ".h"))]

    question = (
        "import json; from tc_export.native.find import require_native_library;"
        "from tc_export.targets import list_targets;"
        "print(json.dumps([str(require_native_library().path), len(list_targets())]))"
    )
    asked = run_installed(wheel, "-c", question)
    assert asked.returncode == 0, asked.stderr
    path, targets = json.loads(asked.stdout)
    assert path == str(tmp_path / "installed" / LIBRARY)
    assert targets == len(list(TARGETS.glob("*.toml")))


def test_without_a_compiler_the_graphs_run_through_their_functions(
    sources: Path, tmp_path: Path, bundle: Path
) -> None:
    nowhere = str(tmp_path / "no-compiler")
    wheel, said = make_wheel(sources, tmp_path, CC=nowhere, CXX=nowhere)
    assert re.fullmatch(r"tc_export-[\d.]+-py3-none-any\.whl", wheel.name)
    assert "tc-export is installed without its native library" in said
    assert (tmp_path / "installed" / LIBRARY).parent.is_dir()  # the package that looks for it
    assert not list(tmp_path.rglob("libtc_ops*"))

    parity = run_installed(wheel, "-m", "tc_export", "parity", str(bundle), "--json")
    assert parity.returncode == 0, parity.stderr
    assert json.loads(parity.stdout)["passed"] is True
    demanded = run_installed(wheel, "-m", "tc_export", "parity", str(bundle), "--native")
    assert demanded.returncode == 4
    assert "libtc_ops.so" in demanded.stderr
