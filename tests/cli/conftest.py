# SPDX-License-Identifier: Apache-2.0
"""Shared by the verbs' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.clips import write_clip


@pytest.fixture(autouse=True)
def working_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty folder that commands run in: no settings and no checkpoint but a test's own."""
    folder = tmp_path_factory.mktemp("working")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 12)
