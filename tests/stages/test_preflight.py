# SPDX-License-Identifier: Apache-2.0
"""What is refused before any work, and the largest input that is chosen."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tc_export.checkpoint.hf_config import read_config
from tc_export.config import ModelConfig
from tc_export.errors import UnsupportedEnvironment, UsageError
from tc_export.pipeline import BuildRequest, build
from tc_export.plan import build_cost
from tc_export.stages import preflight
from tc_export.stages.preflight import choose_profile
from tc_export.targets import Precisions, load_target
from tests.bundled import save_with_tokenizer
from tests.checkpoint.families import edit_config
from tests.repository import REPOSITORY
from tests.stages.conftest import HEAD_SIZE, Tools
from tests.test_pipeline import Watching


def refused(request: BuildRequest, error: type[Exception]) -> str:
    """The message; nothing was written."""
    with pytest.raises(error) as caught:
        build(request, Watching())
    assert not request.output.exists()
    assert not list(request.output.parent.glob(".*building"))
    return f"{caught.value}\n{getattr(caught.value, 'hint', '')}"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return tmp_path / "other"


def test_a_head_size_that_no_kernel_has(request_: BuildRequest, tools: Tools, other: Path) -> None:
    small = save_with_tokenizer(other)
    message = refused(replace(request_, checkpoint=small), UsageError)
    assert "heads have 16 channels" in message
    assert "64, 80, 96, 128, 256" in message


def test_the_head_sizes_are_those_of_the_kernels() -> None:
    source = REPOSITORY / "plugins" / "kernels" / "attention_dispatch.cuh"
    sizes = re.findall(r"case (\d+): return function\(type, HeadSize<\1>", source.read_text())
    assert tuple(map(int, sizes)) == preflight.PLUGIN_HEAD_SIZES


def test_a_mask_that_is_no_prefix(request_: BuildRequest, tools: Tools, other: Path) -> None:
    frame_block = save_with_tokenizer(other, text={"head_dim": HEAD_SIZE})
    edit_config(frame_block, lambda document: document.update(temporal={"mask": "frame_block"}))
    assert "no prefix" in refused(replace(request_, checkpoint=frame_block), UsageError)


@pytest.mark.parametrize(
    ("step", "parity", "hint"),
    [("engine", False, "larger machine"), ("parity", True, "--no-parity")],
)
def test_too_little_memory(
    request_: BuildRequest,
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    parity: bool,
    hint: str,
) -> None:
    real = build_cost.build_cost

    def cost(*arguments: object, **named: object) -> build_cost.BuildCost:
        peaks = real(*arguments, **named).peak_by_step | {step: 9_000_000_000}  # type: ignore[arg-type]
        return build_cost.BuildCost(peak_by_step=peaks, host_bytes=8_000_000_000)

    monkeypatch.setattr(preflight, "build_cost", cost)
    message = refused(replace(request_, check_parity=parity), UnsupportedEnvironment)
    assert f"{step!r} would take 9.0 GB" in message
    assert "8.0 GB" in message
    assert hint in message


def test_memory_for_parity_is_needed_for_parity_only(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = build_cost.BuildCost(peak_by_step={"engine": 1, "parity": 9}, host_bytes=8)
    monkeypatch.setattr(preflight, "build_cost", lambda *arguments, **named: cost)
    config, target = read_config(checkpoint).model, load_target("orin")
    check = partial(preflight.check_possible, config, target, Precisions.both("float16"))
    check(check_parity=False)
    with pytest.raises(UnsupportedEnvironment, match="'parity'"):
        check(check_parity=True)


class TestProfile:
    @pytest.fixture
    def config(self, bundle: Path) -> ModelConfig:
        return read_config(bundle).model

    def test_default_length_is_within_the_context(self, config: ModelConfig) -> None:
        assert choose_profile(config, 16, None).max_length == 256

    def test_frames_must_leave_room_for_text(self, config: ModelConfig) -> None:
        assert choose_profile(config, 63, None).max_frames == 63
        with pytest.raises(UsageError) as raised:
            choose_profile(config, 64, None)
        assert raised.value.hint == "frames that have room: 63"

    def test_length_is_bounded_by_the_context(self, config: ModelConfig) -> None:
        assert choose_profile(config, 1, 256).max_length == 256
        with pytest.raises(UsageError, match="context of 256"):
            choose_profile(config, 1, 257)

    def test_not_even_one_frame(self, config: ModelConfig) -> None:
        with pytest.raises(UsageError) as raised:
            choose_profile(config, 1, 4)
        assert raised.value.hint == "frames that have room: 0"
