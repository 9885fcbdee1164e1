# SPDX-License-Identifier: Apache-2.0
"""Export TC-LLaVA video-language models to engines that are checked against PyTorch.

    import tc_export

    model = tc_export.open("engines/out/llava-cpu")
    print(model.ask("cat.mp4", "What happens next?").answer.text)

The names below are the public interface; docs/python.md is its page. What a name needs is loaded
when the name is first used, so that the import itself costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # what a type checker sees; `_HOMES` says the same to Python
    from tc_export.api import (
        build,
        check_answers,
        check_parity,
        inspect,
        make_plan,
        open,
        quantize_checkpoint,
        verify,
    )
    from tc_export.bundle import Damage, EngineState, Manifest, Placement, Problem
    from tc_export.errors import (
        BundleError,
        CheckFailed,
        CheckpointError,
        InputError,
        TcExportError,
        UnsupportedEnvironment,
        UsageError,
        VideoError,
    )
    from tc_export.parity.answers.accuracy import TaskResult
    from tc_export.parity.tensors.result import ParityResult
    from tc_export.plan.planner import Plan
    from tc_export.quantize.checkpoint import Quantized
    from tc_export.runner import Reporter
    from tc_export.runtime.answer import Answer, AnswerStream, Finish, VideoAnswer
    from tc_export.runtime.answering import VideoLanguageModel
    from tc_export.runtime.generation import GenerationConfig
    from tc_export.runtime.session.video_session import VideoSession
    from tc_export.runtime.video import Rate, SampledVideo, Uniform, sample_video

__all__ = [
    "Answer",
    "AnswerStream",
    "BundleError",
    "CheckFailed",
    "CheckpointError",
    "Damage",
    "EngineState",
    "Finish",
    "GenerationConfig",
    "InputError",
    "Manifest",
    "ParityResult",
    "Placement",
    "Plan",
    "Problem",
    "Quantized",
    "Rate",
    "Reporter",
    "SampledVideo",
    "TaskResult",
    "TcExportError",
    "Uniform",
    "UnsupportedEnvironment",
    "UsageError",
    "VideoAnswer",
    "VideoError",
    "VideoLanguageModel",
    "VideoSession",
    "__version__",
    "build",
    "check_answers",
    "check_parity",
    "inspect",
    "make_plan",
    "open",
    "quantize_checkpoint",
    "sample_video",
    "verify",
]

_HOMES = {
    "api": "build check_answers check_parity inspect make_plan open quantize_checkpoint verify",
    "bundle": "Damage EngineState Manifest Placement Problem",
    "errors": "BundleError CheckFailed CheckpointError InputError TcExportError "
    "UnsupportedEnvironment UsageError VideoError",
    "parity.answers.accuracy": "TaskResult",
    "parity.tensors.result": "ParityResult",
    "plan.planner": "Plan",
    "quantize.checkpoint": "Quantized",
    "runner": "Reporter",
    "runtime.answer": "Answer AnswerStream Finish VideoAnswer",
    "runtime.answering": "VideoLanguageModel",
    "runtime.generation": "GenerationConfig",
    "runtime.session.video_session": "VideoSession",
    "runtime.video": "Rate SampledVideo Uniform sample_video",
}
"""Where the public names live, by module."""

if not TYPE_CHECKING:  # with these in sight, a type checker would believe every name

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names.split():
                value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
