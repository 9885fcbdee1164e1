# SPDX-License-Identifier: Apache-2.0
"""`tc-export ask`: a video file and a question to an answer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tc_export.cli.options import BundleArgument, JsonOption, NativeOption, ThreadsOption
from tc_export.cli.terminal import Terminal, print_json, say_piece
from tc_export.errors import UsageError

if TYPE_CHECKING:
    from tc_export.runtime.answer import Answer, VideoAnswer
    from tc_export.runtime.answering import VideoLanguageModel
    from tc_export.runtime.generation import GenerationConfig
    from tc_export.runtime.video import SampledVideo, Sampling

# Imports of the verb's own machinery stand in functions: `--help` need not load it.

app = typer.Typer()
console = Terminal(stderr=True)


@app.command(epilog='Example: tc-export ask out/llava-cpu --video cat.mp4 --question "What next?"')
def ask(
    bundle: BundleArgument,
    video: Annotated[Path, typer.Option(help="Video or image file.")],
    question: Annotated[str, typer.Option(help="What to ask about it.")],
    frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Frames to sample evenly. By default as many as the bundle takes.",
            show_default=False,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(help="Sample this many frames a second instead.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among so many; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among this much probability.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    native: NativeOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question about a video; the answer is printed as it comes."""
    from tc_export.bundle import read_manifest
    from tc_export.runtime.generation import GenerationConfig
    from tc_export.runtime.video import sample_video

    generation = GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    sampling = choose_sampling(read_manifest(bundle).profile.max_frames, frames, fps)
    seen = sample_video(video, sampling)
    console.print(describe(video, seen), soft_wrap=True)
    # The model is opened last: a wrong video must not wait for it.
    model = _open(bundle, native, threads)
    if seen.is_picture and model.config.image_note:
        console.print(model.config.image_note, soft_wrap=True)
    result = _answer(model, seen, question, generation, quiet=as_json)
    if as_json:
        print_json(_as_json(result, video, question, model))
    else:
        print()
        backend = model.engines.decoder.backend
        console.print(_figures(result.answer, backend), style="dim")


def choose_sampling(max_frames: int, frames: int | None, fps: float | None) -> Sampling:
    """Evenly spread frames, or so many a second.

    Raises:
        UsageError: both are asked for, or more frames than the profile has.
    """
    from tc_export.runtime.video import Rate, Uniform

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
    looks = f"{video.name}: {sampled.width} x {sampled.height}, {sampled.codec}"
    if sampled.is_picture:
        return "\n".join([f"{looks}, an image: one frame", *sampled.notes])
    places = ", ".join(
        f"{index} ({time:.2f} s)"
        for index, time in zip(sampled.indices, sampled.times_s, strict=True)
    )
    lines = [
        f"{looks}, {sampled.duration_s:.2f} s, {sampled.total_frames} frames",
        f"{len(sampled.indices)} sampled: {places}",
        *sampled.notes,
    ]
    return "\n".join(lines)


def _open(bundle: Path, native: bool | None, threads: int | None) -> VideoLanguageModel:
    from tc_export.runtime.answering import VideoLanguageModel

    with console.status("checking the bundle") as status:

        def advance(done: int, total: int) -> None:
            if done < total:
                status.update(f"checking the bundle: {done / 1e9:.1f} of {total / 1e9:.1f} GB")
            else:
                status.update("loading the engines")

        model = VideoLanguageModel.open(bundle, native=native, threads=threads, on_read=advance)
    if not model.engines.native:
        console.print(
            "custom ops run as standard operators (slower): the native library is not in use",
            style="dim",
        )
    return model


def _answer(
    model: VideoLanguageModel,
    seen: SampledVideo,
    question: str,
    generation: GenerationConfig,
    *,
    quiet: bool,
) -> VideoAnswer:
    """Answer, with a bar until the first text comes; print the text unless `quiet`."""
    from rich.progress import Progress

    from tc_export.runtime.answer import about

    with Progress(console=console, transient=True) as progress:
        bars = {phase: progress.add_task(phase, total=None) for phase in ("frames", "tokens")}

        def show(text: str) -> None:
            progress.stop()
            if not quiet:
                say_piece(text)

        def advance(phase: str, done: int, total: int) -> None:
            progress.update(bars[phase], advance=done, total=total)

        answer = model.answer(seen.frames, question, generation, show, advance)
        return about(seen, answer, model.config.image_note)


def _as_json(
    result: VideoAnswer, video: Path, question: str, model: VideoLanguageModel
) -> dict[str, Any]:
    answer = asdict(result.answer)
    return {
        "answer": answer.pop("text"),
        "question": question,
        "video": str(video),
        "frame_indices": list(result.frame_indices),
        "frame_times_s": [round(time, 4) for time in result.frame_times_s],
        "notes": list(result.notes),
        "backend": model.engines.decoder.backend,
        "native": model.engines.native,
        **answer,
    }


def _figures(answer: Answer, backend: str) -> str:
    """How long the answer was, and how fast, in one line."""
    parts = [f"{answer.new_tokens} token(s)"]
    if answer.time_to_first_token_s is not None:
        parts.append(f"first after {answer.time_to_first_token_s:.2f} s")
    if answer.decode_tokens_per_s is not None:
        parts[-1] += f", then {answer.decode_tokens_per_s:.1f} tokens/s"
    return "; ".join([*parts, backend])
