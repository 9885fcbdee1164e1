# SPDX-License-Identifier: Apache-2.0
"""Where only answering was installed: what runs, and what is said of what does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tc_export.missing_packages import EXPORT_PACKAGES
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


@pytest.mark.parametrize("verb", ["ask", "verify", "inspect", "targets", "plan", "--version"])
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
    named = re.search(r"needs the package (\w+), which is not installed", said)
    assert named
    assert named[1] in EXPORT_PACKAGES
    assert "pip install 'tc-export[export]'" in said
    assert "Traceback" not in said
