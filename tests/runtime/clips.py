# SPDX-License-Identifier: Apache-2.0
"""Clips whose pixels say which frame they are, for the tests of everything that reads videos.

A picture is a grid of 4 x 3 blocks. The first two rows hold the frame's number in binary, lowest
bit first; the last row is a pattern that shows when the picture is turned or mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

MILLISECOND = Fraction(1, 1000)
SIZE = (64, 48)
_UPRIGHT = (1, 0, 0, 0)


def picture(number: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A picture [H, W, 3] that holds `number`, for a `size` of (width, height)."""
    width, height = size
    bits = [number >> place & 1 for place in range(8)]
    blocks = np.array([*bits, *_UPRIGHT], dtype=np.uint8).reshape(3, 4) * 215 + 20
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    return np.repeat(blocks[np.ix_(rows, columns)][..., None], 3, axis=2)


def number_in(frame: NDArray[np.uint8]) -> int:
    """The number that an upright picture holds.

    Raises:
        AssertionError: the picture is turned, mirrored or not one of ours.
    """
    height, width, _ = frame.shape
    rows = (np.arange(3) * 2 + 1) * height // 6
    columns = (np.arange(4) * 2 + 1) * width // 8
    bits = (frame[np.ix_(rows, columns)].mean(axis=2) > 128).astype(int).ravel()
    assert tuple(bits[8:]) == _UPRIGHT, f"not upright: {bits.reshape(3, 4)}"
    return int(sum(bit << place for place, bit in enumerate(bits[:8])))


def write_clip(
    path: Path,
    frames: int = 30,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = SIZE,
    times_ms: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    display_matrix: Sequence[int] | None = None,
    pictures: Sequence[NDArray[np.uint8]] | None = None,
    title: str | None = None,
) -> Path:
    """Write a clip of numbered pictures, 100 ms each unless `times_ms` says when each begins."""
    times_ms = times_ms or [100 * index for index in range(frames)]
    with av.open(str(path), "w", options=container_options or {}) as container:
        if title is not None:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = MILLISECOND
        if display_matrix is not None:
            stream.set_display_matrix(display_matrix)
        for index, time_ms in enumerate(times_ms):
            pixels = picture(index, size) if pictures is None else pictures[index]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time_ms, MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path, seconds: float = 1.0, *, cover: bool = False) -> Path:
    """Write silence, with a cover picture if asked."""
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=48000)
        if cover:
            image = container.add_stream("png", rate=1)
            image.width, image.height, image.pix_fmt = *SIZE, "rgb24"
            image.disposition = av.stream.Disposition.attached_pic
            container.mux(image.encode(av.VideoFrame.from_ndarray(picture(1), format="rgb24")))
        for start in range(0, int(48000 * seconds), 1024):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 48000, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path
