# SPDX-License-Identifier: Apache-2.0
"""Frames of a video file: which ones, and their pixels.

A clip is decoded twice: once to learn when each frame is shown, keeping no pixels, and once to
keep the frames that are wanted. Headers are not asked for the number of frames: webm has none, and
edit lists, hidden frames and damage make the others wrong. So memory is that of the wanted frames,
and an index always counts the frames that a player would show.

Time is counted from the first frame, so a clip whose time stamps start late loses nothing. The
pixels are taken as square, as LLaVA's own loaders take them. An image is a clip of one frame.

The content of the file decides what it is, not its name, and it cannot make FFmpeg open anything
else: playlists that name other files are refused.

Axes: H rows, W columns, 3 channels (red, green, blue).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from io import FileIO
from math import floor, isfinite, log10
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from tc_export.errors import UsageError, VideoError

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
    sentences about anything that the user did not ask for: fewer frames, damage.
    """

    frames: tuple[NDArray[np.uint8], ...]
    indices: tuple[int, ...]
    times_s: tuple[float, ...]
    total_frames: int
    duration_s: float
    width: int
    height: int
    codec: str
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Timeline:
    """When each frame of a clip is shown, in seconds from the first."""

    times_s: list[float]
    duration_s: float
    codec: str
    notes: list[str]


def sample_video(path: Path, sampling: Sampling) -> SampledVideo:
    """Decode the frames that `sampling` asks for.

    A clip that is damaged part-way is used up to the damage, and a note says so. (Damage that
    FFmpeg's decoder can conceal, it conceals, as players do.)

    Raises:
        VideoError: there is no video to decode, or it has more frames than `sampling` allows.
    """
    timeline = _scan(path)
    indices, notes = choose_frames(timeline.times_s, timeline.duration_s, sampling)
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
    stamps_s: list[float] = []
    notes = []
    with _open(path) as (container, stream):
        tick_s = stream.time_base or Fraction(1, av.time_base)
        frame_s = float(1 / stream.average_rate) if stream.average_rate else _FRAME_S_WHEN_UNSAID
        try:
            for frame in _decode(container, stream):
                follows_s = stamps_s[-1] + frame_s if stamps_s else 0.0
                stamps_s.append(follows_s if frame.pts is None else float(frame.pts * tick_s))
                frame_s = float(frame.duration * tick_s) or frame_s
        except av.FFmpegError as error:
            if not stamps_s:
                raise VideoError(
                    f"{path}: not one frame can be decoded: {_reason(error)}"
                ) from error
            notes.append(
                f"the clip is damaged after frame {len(stamps_s) - 1} ({_reason(error)}): only "
                "what comes before is used"
            )
        if not stamps_s:
            raise VideoError(f"{path}: its video stream has no frame that can be decoded")
        # A stamp that goes back is broken: such a frame gets its predecessor's.
        times_s = np.maximum.accumulate(np.array(stamps_s) - stamps_s[0]).round(9)
        duration_s = round(float(times_s[-1]) + frame_s, 9)
        if not notes and container.duration is not None:
            # Some containers count their duration from time 0, others from the first frame.
            end_s = max(duration_s, stamps_s[0] + duration_s)
            notes += _note_if_cut_short(container.duration / av.time_base, end_s)
        codec = stream.codec_context.codec.canonical_name
    return _Timeline(times_s=times_s.tolist(), duration_s=duration_s, codec=codec, notes=notes)


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
    # An error here is the one that the scan met, after the frames that it counted.
    with _open(path) as (container, stream), suppress(av.FFmpegError):
        for index, frame in enumerate(_decode(container, stream)):
            if index in wanted:
                frames.append(_upright_rgb(frame))
            if index == indices[-1]:
                break
    if len(frames) != len(indices):
        raise VideoError(f"{path} changed while it was read", hint="try again")
    return tuple(frames)


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the file, and find its video stream.

    FFmpeg gets an open file without a name, so that it goes by content (by name it would render
    any .txt as a video), and may use no protocol, so that nothing else is opened.
    """
    if not path.exists():
        raise VideoError(f"{path}: no such file")
    if not path.is_file():
        raise VideoError(f"{path} is not a file", hint="give a video file")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes)")
    try:
        file = path.open("rb")
    except OSError as error:
        raise VideoError(f"{path} cannot be read: {error.strerror}") from error
    with file, FileIO(file.fileno(), closefd=False) as nameless:
        try:
            container = av.open(nameless, "r", options={"protocol_whitelist": "none"})
        except av.FFmpegError as error:
            raise VideoError(
                f"{path} is not a video, or is damaged: {_reason(error)}",
                hint="videos that players can open are expected: mp4, mkv, webm, mov, avi, gif",
            ) from error
        with container:
            yield container, _video_stream(container, path)


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = {
            "cover picture" if stream.disposition & Disposition.attached_pic else stream.type
            for stream in container.streams
        }
        raise VideoError(f"{path} has no video stream; it has: {', '.join(sorted(kinds))}")
    if stream.codec_context is None:
        raise VideoError(
            f"{path}: there is no decoder for its video codec",
            hint="convert it to H.264 or VP9 first",
        )
    stream.thread_type = "AUTO"
    return stream


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Yield the frames as they are shown.

    Raises:
        FFmpegError: at damage, after the frames that the decoder's threads still held.
    """
    try:
        for packet in container.demux(stream):
            yield from packet.decode()
    except av.FFmpegError:
        with suppress(av.FFmpegError):
            yield from stream.decode(None)
        raise


def _upright_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return the pixels [H, W, 3], turned and mirrored as the file's display matrix says."""
    rgb_HWC: NDArray[np.uint8] = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know every type of side data, Exif for one
        return np.ascontiguousarray(np.rot90(rgb_HWC, round(frame.rotation / 90)))
    if not isinstance(matrix, SideData):
        return np.ascontiguousarray(rgb_HWC)
    # A pixel (x, y) is shown at (a x + c y, b x + d y), up to a shift; fixed point 16.16.
    (a, b), (c, d) = np.frombuffer(bytes(matrix), dtype=np.int32).reshape(3, 3)[:2, :2].tolist()
    if abs(b) > abs(a):
        rgb_HWC, (a, d) = rgb_HWC.swapaxes(0, 1), (c, b)
    return np.ascontiguousarray(rgb_HWC[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _reason(error: av.FFmpegError) -> str:
    return error.strerror or "FFmpeg gives no reason"
