# SPDX-License-Identifier: Apache-2.0
"""Where only answering was installed: what runs, and what is said of what does not."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tc_export.cli.missing_packages import EXPORT_PACKAGES, missing_packages_named
from tc_export.errors import EnvironmentLacks
from tests.repository import REPOSITORY
from tests.runtime.clips import write_clip

DEMO = REPOSITORY / "checkpoints" / "tc-llava-tiny"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command where the packages of `[export]` cannot be imported."""
    return subprocess.run(
        [sys.executable, "-m", "tests.cli.without_export", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_packages_are_those_of_the_extra() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {
        text.split(">")[0].replace("-", "_") for text in project["optional-dependencies"]["export"]
    }
    assert names == EXPORT_PACKAGES
    assert not {text.split(">")[0] for text in project["dependencies"]} & EXPORT_PACKAGES


@pytest.mark.parametrize("verb", ["ask", "verify", "inspect", "targets", "plan", "version"])
def test_what_a_device_does_needs_no_more(verb: str, bundle: Path, tmp_path: Path) -> None:
    arguments: dict[str, tuple[object, ...]] = {
        "ask": (
            bundle,
            "--video",
            write_clip(tmp_path / "clip.mp4", 4),
            "--question",
            "What?",
            "--max-new-tokens",
            3,
        ),
        "verify": (bundle,),
        "inspect": (bundle,),
        "plan": ("--checkpoint", DEMO, "--target", "orin"),
    }
    done = run(verb, *arguments.get(verb, ()))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", ["build", "parity"])
def test_what_builds_says_what_to_install(verb: str, bundle: Path, tmp_path: Path) -> None:
    arguments = {
        "build": ("--checkpoint", DEMO, "--output", tmp_path / "out"),
        "parity": (bundle,),
    }
    done = run(verb, *arguments[verb])
    assert done.returncode == 4
    said = " ".join(done.stderr.split())
    assert "needs the package torch, which is not installed" in said
    assert "pip install 'tc-export[export]'" in said
    assert "Traceback" not in said


def test_another_missing_module_is_a_bug_of_ours() -> None:
    with pytest.raises(ModuleNotFoundError), missing_packages_named():
        raise ModuleNotFoundError("No module named 'tc_export.nowhere'", name="tc_export.nowhere")
    with pytest.raises(EnvironmentLacks, match="onnx_ir"), missing_packages_named():
        raise ModuleNotFoundError("No module named 'onnx_ir.passes'", name="onnx_ir.passes")
