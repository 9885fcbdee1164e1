# SPDX-License-Identifier: Apache-2.0
"""Shared by the verbs' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.clips import write_clip


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 12)
