# SPDX-License-Identifier: Apache-2.0
"""Who may read a bundle is what the umask says, for each file of every stage."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tc_export.bundle import Placement
from tc_export.pipeline import build
from tc_export.runner import SilentReporter, Stage
from tests.bundled import request_for
from tests.stages.conftest import Tools


@contextmanager
def umask_of(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def modes_below(folder: Path) -> dict[str, int]:
    """Of the folder itself, and of all in it."""
    paths = [folder, *folder.rglob("*")]
    return {
        f"{path.relative_to(folder)}{'/' * path.is_dir()}": stat.S_IMODE(path.stat().st_mode)
        for path in paths
    }


def wrong_modes(folder: Path, umask: int) -> dict[str, str]:
    found = modes_below(folder)
    return {
        path: oct(mode)
        for path, mode in found.items()
        if mode != (0o777 if path.endswith("/") else 0o666) & ~umask
    }


class Looking(SilentReporter):
    """Looks at the staging folder whenever a stage begins."""

    def __init__(self, staging: Path, umask: int) -> None:
        self._staging = staging
        self._umask = umask
        self.wrong: dict[str, str] = {}
        self.seen = 0

    def started(self, stage: Stage) -> None:
        self.seen += 1
        self.wrong |= wrong_modes(self._staging, self._umask)


@pytest.mark.parametrize(
    ("target", "umask"), [("orin", 0o022), ("orin", 0o077), ("rtx4090", 0o002)]
)
def test_every_file_and_folder_has_the_mode_that_the_umask_gives(
    checkpoint: Path, tools: Tools, tmp_path: Path, target: str, umask: int
) -> None:
    request = request_for(checkpoint, tmp_path / "bundle")
    looking = Looking(tmp_path / ".bundle.building", umask)
    with umask_of(umask):
        build(replace(request, target=target, check_parity=False), looking)
    assert looking.seen > 8
    assert looking.wrong == {}
    assert wrong_modes(request.output, umask) == {}


def test_so_does_a_copied_shard_and_a_report(checkpoint: Path, tmp_path: Path) -> None:
    request = replace(request_for(checkpoint, tmp_path / "bundle"), weights=Placement.COPY)
    shard = checkpoint / "model.safetensors"
    mode = stat.S_IMODE(shard.stat().st_mode)
    shard.chmod(0o400)
    try:
        with umask_of(0o022):
            build(request, SilentReporter())
    finally:
        shard.chmod(mode)
    files = modes_below(request.output)
    assert {"graphs/model.safetensors", "parity/report.json", "embedding.safetensors"} <= set(files)
    assert wrong_modes(request.output, 0o022) == {}
