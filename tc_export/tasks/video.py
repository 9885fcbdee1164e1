# SPDX-License-Identifier: Apache-2.0
"""Writes a drawn clip as a real video file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from tc_export.errors import UsageError


def write_video(
    path: Path,
    frames: NDArray[np.uint8],
    *,
    frames_per_second: int = 8,
    repeat: int = 4,
    codec: str = "libx264",
) -> None:
    """Encode frames [steps, height, width, 3] as a video; the name's suffix is the container.

    Every step is shown `repeat` times, so that any uniform sampling of as many frames as there
    are steps meets each step once.

    Raises:
        UsageError: the frames have odd sides, which chroma subsampling cannot encode, or the
            codec does not exist.
    """
    steps, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise UsageError(f"frames of {width} x {height} cannot be encoded: both sides must be even")
    if codec not in av.codecs_available:
        raise UsageError(f"the codec {codec!r} does not exist", hint="try libx264 or libvpx-vp9")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(frames_per_second))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for step in range(steps):
            for _ in range(repeat):
                picture = av.VideoFrame.from_ndarray(frames[step], format="rgb24")
                container.mux(stream.encode(picture))
        container.mux(stream.encode())
