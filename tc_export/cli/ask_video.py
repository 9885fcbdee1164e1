# SPDX-License-Identifier: Apache-2.0
"""A video file and a question to an answer: what `tc-export ask` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from tc_export.bundle import read_manifest
from tc_export.errors import UsageError
from tc_export.runtime.generation import GenerationConfig
from tc_export.runtime.video import Rate, SampledVideo, Sampling, Uniform, sample_video


def ask(
    bundle: Path,
    video: Path,
    question: str,
    generation: GenerationConfig,
    *,
    frames: int | None,
    fps: float | None,
    native: bool | None,
    threads: int | None,
    console: Console,
    on_text: Callable[[str], None],
) -> dict[str, Any]:
    """Answer a question about a video, and tell `console` what is looked at.

    `on_text` gets the answer piece by piece. The result holds the answer, the sampled indices and
    times, and the speed, ready for JSON.

    Raises:
        BundleError: the bundle cannot be used.
        VideoError: the video cannot be used.
        UsageError: more frames than the profile, or a question too long for the context.
    """
    sampling = choose_sampling(read_manifest(bundle).profile.max_frames, frames, fps)
    sampled = sample_video(video, sampling)
    console.print(describe(video, sampled), highlight=False, soft_wrap=True)

    # The model is opened last: a wrong video or question must not wait for it.
    from tc_export.runtime.answering import VideoLanguageModel

    with console.status("loading the engines"):
        model = VideoLanguageModel.open(bundle, native=native, threads=threads)
    if not model.engines.native:
        console.print(
            "custom ops run as standard operators (slower): the native library is not in use",
            style="dim",
            highlight=False,
        )
    with Progress(console=console, transient=True) as progress:
        tasks = {phase: progress.add_task(phase, total=None) for phase in ("frames", "tokens")}

        def show(text: str) -> None:
            if text:
                progress.stop()
                on_text(text)

        answer = model.answer(
            sampled.frames,
            question,
            generation,
            show,
            lambda phase, done, total: progress.update(tasks[phase], advance=done, total=total),
        )
    return {
        "answer": answer.text,
        "question": question,
        "video": str(video),
        "frame_indices": list(sampled.indices),
        "frame_times_s": [round(time, 4) for time in sampled.times_s],
        "notes": list(sampled.notes),
        "backend": model.engines.decoder.backend,
        "native": model.engines.native,
        **{name: value for name, value in asdict(answer).items() if name != "text"},
    }


def choose_sampling(max_frames: int, frames: int | None, fps: float | None) -> Sampling:
    """Evenly spread frames, or so many a second.

    Raises:
        UsageError: both are asked for, or more frames than the profile has.
    """
    if fps is not None:
        if frames is not None:
            raise UsageError("--frames and --fps exclude each other", hint="give one of them")
        return Rate(fps=fps, max_frames=max_frames)
    if frames is not None and frames > max_frames:
        raise UsageError(
            f"--frames {frames} is more than the {max_frames} that the bundle takes",
            hint=f"use at most --frames {max_frames}, or build with a larger --max-frames",
        )
    return Uniform(frames=frames or max_frames)


def describe(video: Path, sampled: SampledVideo) -> str:
    """Which frames were looked at, and when they are."""
    places = ", ".join(
        f"{index} ({time:.2f} s)"
        for index, time in zip(sampled.indices, sampled.times_s, strict=True)
    )
    lines = [
        f"{video.name}: {sampled.width} x {sampled.height}, {sampled.codec}, "
        f"{sampled.duration_s:.2f} s, {sampled.total_frames} frames",
        f"{len(sampled.indices)} sampled: {places}",
        *sampled.notes,
    ]
    return "\n".join(lines)
