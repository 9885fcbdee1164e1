# SPDX-License-Identifier: Apache-2.0
import os
from pathlib import Path

import pytest

from tests.runner.toy import Toy


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; only a power cut does, and none is tested."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)
