# SPDX-License-Identifier: Apache-2.0
"""A stranger's media file: opened if it is one, and decoded within bounds.

FFmpeg opens far more than videos: playlists and scripts that name other files, subtitles and text
that it draws, raw samples, devices. Only the formats in `_VIDEOS`, `_PICTURES` and `_SOUNDS` are
opened; the content of a file decides which one it is, not its name. Nothing else can be opened by
it: FFmpeg gets an open file without a name, and may use no protocol.

A picture has at most `MAX_PIXELS` pixels. FFmpeg holds to it wherever it allocates one, before the
first frame and where a stream changes its size.

Whatever FFmpeg or PyAV raises on the way is about the file: it becomes a `VideoError` here, or a
`DecodingError` where frames were decoded before.

Axes: H rows, W columns, 3 channels (red, green, blue).
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from io import FileIO
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from tc_export.errors import VideoError

MAX_PIXELS = 8192 * 8192
"""Most pixels of a picture: 8K video (7680 x 4320) and photographs of 60 megapixels are below it,
and one as RGB is 200 MB."""

# FFmpeg's names of demuxers. Containers, and the streams of codecs that are kept without one.
_VIDEOS = (
    *("mov", "mp4", "matroska", "webm", "avi", "asf", "flv", "mpeg", "mpegts", "ogg", "mxf", "nut"),
    *("ivf", "dv", "rm", "wtv", "gif", "apng", "jpegxl_anim"),
    *("h264", "hevc", "vvc", "av1", "obu", "m4v", "mpegvideo", "mjpeg", "yuv4mpegpipe"),
)
_PICTURES = tuple(
    f"{name}_pipe"
    for name in (
        *("png", "jpeg", "jpegls", "jpegxl", "j2k", "webp", "bmp", "tiff", "gif", "qoi"),
        *("pam", "pbm", "pgm", "ppm"),
    )
)
# These have no pictures: they are opened so that the message can say what is in them.
_SOUNDS = ("mp3", "aac", "flac", "wav")
_EXPECTED = (
    "videos are expected (mp4, mov, mkv, webm, avi, wmv, flv, mpeg, ts, ogv, gif) or pictures "
    "(png, jpeg, webp, bmp, tiff)"
)

# What FFmpeg logs of its refusals; its error codes do not say as much.
_TOO_LARGE = re.compile(r"Picture size (\d+)x(\d+) exceeds")
_PLAYLIST = re.compile(r"Not detecting m3u8/(hls)")


class DecodingError(Exception):
    """The file is damaged from here on; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """An open file with a video stream.

    `tick_s` is the unit of the frames' time stamps, `frame_s` how long a frame is shown where the
    file says it for all, and `duration_s` what the file says of its length. All are in seconds.
    """

    container: InputContainer
    stream: VideoStream
    tick_s: Fraction
    frame_s: float | None
    duration_s: float | None
    codec: str

    @property
    def is_picture(self) -> bool:
        """True for the formats of pictures, though several may follow each other in one file."""
        return self.container.format.name in _PICTURES

    def frames(self) -> Iterator[VideoFrame]:
        """Yield the frames as they are shown.

        Raises:
            DecodingError: at damage, after the frames that the decoder's threads still held.
        """
        try:
            for packet in self.container.demux(self.stream):
                yield from packet.decode()
        except Exception as error:
            reason = self._reason(error)
            with suppress(Exception):
                yield from self.stream.decode(None)
            raise DecodingError(reason) from error

    def _reason(self, error: Exception) -> str:
        context = self.stream.codec_context
        if context.width * context.height > MAX_PIXELS:
            return f"pictures of {_size(context.width, context.height)}"
        return _words(error)


@contextmanager
def open_media(path: Path) -> Iterator[Media]:
    """Open a file, and find its video stream.

    Raises:
        VideoError: there is no such file, it is of no format that is opened, or it has no video
            stream that can be decoded.
    """
    _check_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise VideoError(f"{path} cannot be read: {error.strerror}") from error
    with file, FileIO(file.fileno(), closefd=False) as nameless:
        try:
            # Titles in another encoding than UTF-8 are common, and of no interest.
            container = av.open(nameless, "r", options=_options(), metadata_errors="replace")
        except Exception as error:
            raise _refusal(path, nameless, error) from error
        with container:
            stream = _video_stream(container, path)
            _check_size(path, nameless, stream)
            yield _media(container, stream)


def _check_file(path: Path) -> None:
    """Refuse what is no file with something in it, before it is opened: a pipe would hang."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        address = re.match(r"\w{2,}:/", str(path))
        hint = "only files are opened: download it first" if address else None
        raise VideoError(f"{path}: no such file", hint=hint) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise VideoError(f"{path} cannot be a file: {_words(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise VideoError(f"{path} is not a file", hint="give a video file")
    if status.st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes)")


def _options() -> dict[str, str]:
    """What FFmpeg may open, and how much."""
    return {
        "protocol_whitelist": "none",
        "format_whitelist": ",".join((*_VIDEOS, *_PICTURES, *_SOUNDS)),
        "max_pixels": str(MAX_PIXELS),
    }


def _refusal(path: Path, file: FileIO, error: Exception) -> VideoError:
    """Say why FFmpeg did not open a file; by the name of its format, where it is another one."""
    refused = None
    if isinstance(error, av.FFmpegError):
        for name, line in _logged(file):
            if line.startswith("Format not on whitelist"):
                refused = name
            elif found := _PLAYLIST.match(line):
                refused = found[1]
    if refused is not None:
        return VideoError(f"{path} is of the format {refused}, which is not opened", hint=_EXPECTED)
    return VideoError(f"{path} is not a video, or is damaged: {_words(error)}", hint=_EXPECTED)


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        kinds = {
            "cover picture" if stream.disposition & Disposition.attached_pic else stream.type
            for stream in container.streams
        }
        found = f"it has: {', '.join(sorted(kinds))}" if kinds else "it has no stream at all"
        raise VideoError(f"{path} has no video stream; {found}")
    if stream.codec_context is None:
        raise VideoError(
            f"{path}: there is no decoder for its video codec",
            hint="convert it to H.264 or VP9 first",
        )
    return stream


def _check_size(path: Path, file: FileIO, stream: VideoStream) -> None:
    """Refuse pictures that are too large, by what the headers say.

    Where FFmpeg has found the size itself, and refused it, it gives none.
    """
    width, height = stream.codec_context.width, stream.codec_context.height
    if not width:
        found = (_TOO_LARGE.match(line) for _, line in _logged(file))
        width, height = next(((int(size[1]), int(size[2])) for size in found if size), (0, 0))
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"{path} has pictures of {_size(width, height)}, and at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels are decoded",
            hint="make it smaller first: the model sees a few hundred pixels a side",
        )


def _media(container: InputContainer, stream: VideoStream) -> Media:
    stream.thread_type = "AUTO"
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    rate, duration = stream.average_rate, container.duration
    return Media(
        container=container,
        stream=stream,
        tick_s=stream.time_base or Fraction(1, av.time_base),
        frame_s=float(1 / rate) if rate else None,
        duration_s=None if duration is None else duration / av.time_base,
        codec=stream.codec_context.codec.canonical_name,
    )


def _logged(file: FileIO) -> list[tuple[str, str]]:
    """Open a file once more, and return what FFmpeg logs: who says it, and what.

    PyAV's log is the whole process's, and its callback waits for Python's lock. So it is on for
    this alone, which no decoder's thread has part in.
    """
    file.seek(0)
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as lines, suppress(Exception):
            av.open(file, "r", options=_options(), metadata_errors="replace").close()
    finally:
        av.logging.set_skip_repeated(skips)
        av.logging.set_level(level)
    return [(name, line.strip()) for _, name, line in lines]


def upright_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return the pixels [H, W, 3], turned and mirrored as the file's display matrix says.

    Raises:
        DecodingError: the frame cannot be converted.
    """
    try:
        return _turned(frame, frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False))
    except Exception as error:
        raise DecodingError(_words(error)) from error


def _turned(frame: VideoFrame, rgb_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
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


def _size(width: int, height: int) -> str:
    return f"{width} x {height} pixels ({width * height / 1e6:.0f} megapixels)"


def _words(error: Exception) -> str:
    """An error's own words, without what PyAV and Python add."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
