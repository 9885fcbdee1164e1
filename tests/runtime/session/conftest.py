# SPDX-License-Identifier: Apache-2.0
"""The small bundle for sessions, without our library and with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tc_export.config import TemporalConfig
from tc_export.native.find import find_native_library
from tc_export.runtime.answering import VideoLanguageModel


@pytest.fixture(scope="module", params=[False, True], ids=["functions", "native"])
def native(request: pytest.FixtureRequest) -> bool:
    """Whether our library serves the ops."""
    found = find_native_library() if request.param else None
    if request.param and (found is None or not found.has_onnxruntime_ops):
        pytest.skip("the native library is not built: make setup, with CMake and a compiler")
    return bool(request.param)


@pytest.fixture(scope="module")
def opened(native: bool, bundle: Path) -> VideoLanguageModel:
    """The small bundle."""
    return VideoLanguageModel.open(bundle, native=native, threads=1)


@pytest.fixture
def model(opened: VideoLanguageModel) -> VideoLanguageModel:
    """Opened afresh as far as a test may change it, with no token that ends an answer."""
    return reconfigured(opened)


def reconfigured(opened: VideoLanguageModel, **temporal: object) -> VideoLanguageModel:
    """The same engines and files, with other settings of the method.

    Three masks have one graph: what they let a query see is fed to it.
    """
    config = opened.config
    settings = TemporalConfig.model_validate(config.model.temporal.model_dump() | temporal)
    model = config.model.model_copy(update={"temporal": settings})
    changed = VideoLanguageModel.__new__(VideoLanguageModel)
    changed.__dict__ |= opened.__dict__
    changed.config = replace(config, model=model, eos_token_ids=())
    return changed
