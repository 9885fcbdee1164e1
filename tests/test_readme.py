# SPDX-License-Identifier: Apache-2.0
"""The README tells the truth: its commands run, and what it links to is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.native import need
from tests.repository import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
COMMANDS = re.findall(r"^    (\.venv/bin/tc-export .+)$", README, re.MULTILINE)
COMPILERS = {
    "rtx4090": ("cmake", "make", "g++"),
    "orin": ("cmake", "make", "aarch64-linux-gnu-g++"),
}
"""What the README says that a build for a device needs, by the device."""
STATES = {"rtx4090": "built", "orin": "pending"}


def of_device(device: str) -> list[str]:
    """The commands of the README that make a device's bundle or read it."""
    return [
        command
        for command in COMMANDS
        if command.endswith(f" build --target {device}") or f"out/tc-llava-tiny-{device}" in command
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the commands find it: environment, demo checkpoint and settings, no output."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in (".venv", "checkpoints", "scripts", "tc-export.toml"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


def run(command: str, folder: Path) -> str:
    ended = subprocess.run(
        shlex.split(command), cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def recipe(target: str) -> list[str]:
    """The commands that `make` runs for a target, as make itself spells them out."""
    made = shutil.which("make")
    assert made
    listed = subprocess.run(
        [made, "--dry-run", "--no-print-directory", target],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in listed.stdout.splitlines() if line.startswith(".venv/bin/")]


def test_the_commands_of_make_demo_and_of_the_readme(checkout: Path) -> None:
    """The demo's commands in order, and then the README's; the answer is the one it shows."""
    demo = [line for line in recipe("demo") if "pip install" not in line]
    assert any("tc-export build" in line for line in demo)
    assert any("tc-export ask" in line for line in demo)
    assert len(COMMANDS) == 11
    right_answer = ""
    for line in demo:
        question = checkout / "engines" / "out" / "demo.txt"
        asked = question.read_text() if question.exists() else ""
        printed = run(re.sub(r"\$\(cat [^)]*\)", asked, line), checkout)
        if "Right answer: " in printed:
            right_answer = printed.rsplit("Right answer: ", 1)[1].strip()
        if "tc-export ask" in line:
            assert printed.strip() == right_answer
    for command in COMMANDS:
        if any(command in of_device(device) for device in COMPILERS):
            continue
        printed = run(command, checkout)
        if "tc-export ask" in command:
            assert printed.strip() == right_answer


@pytest.mark.parametrize("device", COMPILERS)
def test_the_commands_of_the_readme_for_a_device(device: str, checkout: Path) -> None:
    need(*COMPILERS[device], package="cmake make g++ g++-aarch64-linux-gnu")
    assert any("tc-export build" in command for command in of_device(device))
    for command in of_device(device):
        printed = run(command, checkout)
        if "tc-export build" in command:
            assert f"bundle: engines/out/tc-llava-tiny-{device}" in printed
            assert f"engine: {STATES[device]}" in printed


def test_make_test_runs_pytest() -> None:
    assert any("pytest" in line for line in recipe("test"))
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    "document",
    sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]),
    ids=lambda path: path.name,
)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / link).exists(), f"{document.name}: {link}"
