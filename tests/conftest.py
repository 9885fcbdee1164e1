# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: one thread for small models, and a small exported model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.bundled import build_small
from tests.exported import Exported, export_small

# How long an example takes says nothing of it on a busy machine.
settings.register_profile(
    "no-deadline", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("no-deadline")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The models are so small that handing work out costs fifty times the work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small LLaVA with gamma 0.5, exported in float32. Not to be changed: copy it first."""
    folder: Path = tmp_path_factory.mktemp("exported")
    return export_small(folder)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle with a tokenizer. Not to be changed: copy it first."""
    return build_small(tmp_path_factory.mktemp("built"))
