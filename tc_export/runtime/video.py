# SPDX-License-Identifier: Apache-2.0
"""Frames of a video file: which ones, and their pixels.

A clip is decoded twice: once to learn when each frame is shown, keeping no pixels, and once to
keep the frames that are wanted. Headers are not asked for the number of frames: webm has none, and
edit lists, hidden frames and damage make the others wrong. So memory is that of the wanted frames,
and an index always counts the frames that a player would show.

Time is counted from the first frame, so a clip whose time stamps start late loses nothing. The
pixels are taken as square, as LLaVA's own loaders take them. An image is a clip of one frame.

`media` says which files are opened, and bounds what they cost.

Axes: H rows, W columns, 3 channels (red, green, blue).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from tc_export.errors import UsageError, VideoError
from tc_export.runtime.media import DecodingError, Media, open_media, upright_rgb

_FRAME_S_WHEN_UNSAID = 1 / 25
_CUT_SHORT_S = 0.5  # sound often outlasts the pictures by less than this


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """`frames` frames spread evenly over the clip, the first and the last among them.

    The indices are `np.linspace(0, total - 1, frames)`, rounded down, as in LLaVA-Video: even in
    frames, so in a clip of variable frame rate not even in time. A shorter clip gives all it has.
    """

    frames: int

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UsageError(f"at least one frame must be sampled, not {self.frames}")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The frame on screen at every 1 / `fps` seconds, each at most once.

    More than `max_frames` is an error, since dropping frames would change the rate.
    """

    fps: float
    max_frames: int

    def __post_init__(self) -> None:
        if not (isfinite(self.fps) and self.fps > 0):
            raise UsageError(f"the frame rate must be a positive number, not {self.fps}")
        if self.max_frames < 1:
            raise UsageError(f"at least one frame must be allowed, not {self.max_frames}")


Sampling = Uniform | Rate


@dataclass(frozen=True, kw_only=True)
class SampledVideo:
    """The sampled frames, and what the user is told about them.

    `frames` are [H, W, 3] and upright; `width` and `height` are the first one's. `notes` are
    sentences about anything that the user did not ask for: fewer frames, damage. `is_picture` is
    True for a still image, of which one frame is all that there is.
    """

    frames: tuple[NDArray[np.uint8], ...]
    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    total_frames: int
    duration_s: float
    width: int
    height: int
    codec: str
    is_picture: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Timeline:
    """When each frame of a clip is shown, in seconds from the first."""

    times_s: list[float]
    duration_s: float
    codec: str
    is_picture: bool
    notes: list[str]


def sample_video(video: str | os.PathLike[str], sampling: Sampling) -> SampledVideo:
    """Decode the frames of a video or image file that `sampling` asks for.

    A clip that is damaged part-way is used up to the damage, and a note says so. (Damage that
    FFmpeg's decoder can conceal, it conceals, as players do.)

    Raises:
        VideoError: there is no video to decode, or it has more frames than `sampling` allows.
    """
    path = Path(video)
    timeline = _scan(path)
    indices, notes = choose_frames(timeline.times_s, timeline.duration_s, sampling)
    if timeline.is_picture:
        notes = []  # one frame is all that was to be expected
    frames = _pick(path, indices)
    height, width, _ = frames[0].shape
    return SampledVideo(
        frames=frames,
        indices=tuple(indices),
        times_s=tuple(timeline.times_s[index] for index in indices),
        total_frames=len(timeline.times_s),
        duration_s=timeline.duration_s,
        width=width,
        height=height,
        codec=timeline.codec,
        is_picture=timeline.is_picture,
        notes=(*timeline.notes, *notes),
    )


def choose_frames(
    times_s: Sequence[float], duration_s: float, sampling: Sampling
) -> tuple[list[int], list[str]]:
    """Return the indices of the wanted frames, ascending and distinct, and notes.

    `times_s` says when each frame comes on screen, from 0 on.

    Raises:
        VideoError: they are more than `sampling` allows.
    """
    if isinstance(sampling, Rate):
        return _choose_by_rate(times_s, duration_s, sampling)
    total = len(times_s)
    if sampling.frames > total:
        note = f"{sampling.frames} frames were asked for and the clip has {total}: all are used"
        return list(range(total)), [note]
    return np.linspace(0, total - 1, sampling.frames, dtype=int).tolist(), []


def _choose_by_rate(
    times_s: Sequence[float], duration_s: float, rate: Rate
) -> tuple[list[int], list[str]]:
    """Samples are due at k / fps. A frame is wanted when one is due while it is on screen."""
    # Containers round time stamps: a frame that is due at t may say a little later. Half a sample,
    # and at most 1 ms, is never another sample.
    tolerance_s = min(1e-3, 0.5 / rate.fps)
    changes_s = np.array([*times_s, duration_s])
    samples_before = np.ceil((changes_s - tolerance_s) * rate.fps)
    samples = samples_before[-1] = max(1, samples_before[-1])  # the first is due at once
    indices: list[int] = np.flatnonzero(np.diff(samples_before)).tolist()
    if len(indices) > rate.max_frames:
        raise VideoError(
            f"{rate.fps:g} frames a second of a clip of {duration_s:.2f} s are {len(indices)} "
            f"frames, and at most {rate.max_frames} fit",
            hint=f"use --fps {_rounded_down(rate.max_frames / duration_s)} or less, or sample "
            "the frames uniformly",
        )
    if samples > len(indices):
        return indices, [
            f"{rate.fps:g} frames a second were asked for and the clip shows about "
            f"{len(times_s) / duration_s:.3g}: no frame is used twice"
        ]
    return indices, []


def _rounded_down(value: float) -> str:
    """`value` with three digits, never more than it is."""
    digits = 2 - floor(log10(value))
    return f"{floor(value * 10**digits) / 10**digits:g}"


def _scan(path: Path) -> _Timeline:
    """Decode the whole clip for its time stamps."""
    with open_media(path) as media:
        stamps_s, frame_s, damage = _read_stamps(media)
        is_picture = media.is_picture and len(stamps_s) == 1
        said_s, codec = media.duration_s, media.codec
    if not stamps_s:
        raise VideoError(
            f"{path}: not one frame can be decoded: {damage}"
            if damage
            else f"{path}: its video stream has no frame that can be decoded"
        )
    # A stamp that goes back is broken: such a frame gets its predecessor's.
    times_s = np.maximum.accumulate(np.array(stamps_s) - stamps_s[0]).round(9)
    duration_s = round(float(times_s[-1]) + frame_s, 9)
    notes = []
    if damage:
        notes.append(
            f"the clip is damaged after frame {len(stamps_s) - 1} ({damage}): only what comes "
            "before is used"
        )
    elif said_s is not None:
        # Some containers count their duration from time 0, others from the first frame.
        notes += _note_if_cut_short(said_s, max(duration_s, stamps_s[0] + duration_s))
    return _Timeline(
        times_s=times_s.tolist(),
        duration_s=duration_s,
        codec=codec,
        is_picture=is_picture,
        notes=notes,
    )


def _read_stamps(media: Media) -> tuple[list[float], float, str]:
    """When each frame is shown, how long the last one is, in seconds; and what damage there is."""
    stamps_s: list[float] = []
    frame_s = media.frame_s or _FRAME_S_WHEN_UNSAID
    try:
        for frame in media.frames():
            follows_s = stamps_s[-1] + frame_s if stamps_s else 0.0
            stamps_s.append(follows_s if frame.pts is None else float(frame.pts * media.tick_s))
            frame_s = float(frame.duration * media.tick_s) or frame_s
    except DecodingError as error:
        return stamps_s, frame_s, str(error)
    return stamps_s, frame_s, ""


def _note_if_cut_short(said_s: float, end_s: float) -> list[str]:
    if said_s - end_s <= max(_CUT_SHORT_S, said_s / 10):
        return []
    return [
        f"the file says that it lasts {said_s:.2f} s, but its frames end at {end_s:.2f} s: "
        "it may have been cut short"
    ]


def _pick(path: Path, indices: list[int]) -> tuple[NDArray[np.uint8], ...]:
    """Decode up to the last wanted frame, and keep the wanted ones."""
    wanted = set(indices)
    frames: list[NDArray[np.uint8]] = []
    with open_media(path) as media:
        decoded = enumerate(media.frames())
        while len(frames) < len(indices):
            try:
                index, frame = next(decoded)
            except (StopIteration, DecodingError) as error:  # the scan came further
                raise VideoError(f"{path} changed while it was read", hint="try again") from error
            if index in wanted:
                frames.append(_converted(path, index, frame))
    return tuple(frames)


def _converted(path: Path, index: int, frame: VideoFrame) -> NDArray[np.uint8]:
    try:
        return upright_rgb(frame)
    except DecodingError as error:
        raise VideoError(f"{path}: frame {index} cannot be made RGB: {error}") from error
