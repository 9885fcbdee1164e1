# SPDX-License-Identifier: Apache-2.0
"""Shared by all tests: one thread for small models, and a small exported model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tc_export.config import AttentionMask, ModelSettings, TemporalConfig
from tc_export.pipeline import build
from tc_export.runner import SilentReporter
from tests.bundled import build_small, request_for, save_with_tokenizer
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


@pytest.fixture(scope="session")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two number formats, whose mask needs one more input. Not to be changed."""
    folder = tmp_path_factory.mktemp("ablation")
    checkpoint = save_with_tokenizer(folder / "checkpoint")
    request = replace(
        request_for(checkpoint, folder / "bundle"),
        precision="vision=fp16,decoder=fp32",
        settings=ModelSettings(temporal=TemporalConfig(mask=AttentionMask.FRAME_BLOCK)),
        check_parity=False,
    )
    build(request, SilentReporter())
    return request.output
