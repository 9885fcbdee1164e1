# SPDX-License-Identifier: Apache-2.0
"""Hostile media files: other formats, huge pictures, and bytes changed anywhere."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from tc_export.errors import VideoError
from tc_export.runtime import media
from tc_export.runtime.video import Uniform, sample_video
from tests.runtime.clips import number_in, picture, write_clip, write_sound

ALL = Uniform(frames=1000)

# Files that FFmpeg would open: by the name of its demuxer.
OTHER_FORMATS = {
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nclip.ts\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile clip.ts\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    b"m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "srt": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n\n2\n00:00:03,000 --> 00:00:04,000\nx\n",
    "webvtt": b"WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n",
    "ass": b"[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,0:00:01.00,x\n",
    "vobsub": b"# VobSub index file, v7\nsize: 720x480\n",
    "ffmetadata": b";FFMETADATA1\ntitle=x\n",
    # Text that FFmpeg draws.
    "xbin": b"XBIN\x1a" + b"\x50\0\x19\0\x10\0" + b"a\x07" * 2000,
    "idf": b"\x041.4\x00\x00\x00\x00\x4f\x00\x15\x00" + b"a\x07" * 3000,
    "bin": b"\x01" + bytes(192) + b"a\x07" * 4000 + b"\x1aSAUCE00" + bytes(121),
}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.png", "no suffix"])
@pytest.mark.parametrize("demuxer", OTHER_FORMATS)
def test_other_formats_are_refused_by_name(
    demuxer: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a file without a name has its neighbours there
    write_clip(tmp_path / "clip.ts")
    (tmp_path / name).write_bytes(OTHER_FORMATS[demuxer])
    with pytest.raises(VideoError, match=f"is of the format {demuxer}, which is not op") as caught:
        sample_video(tmp_path / name, ALL)
    assert "mp4, mov, mkv" in (caught.value.hint or "")


def test_ffmpegs_log_is_as_it_was() -> None:
    assert media.av.logging.get_level() is None
    assert media.av.logging.get_skip_repeated()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://example.org/clip.mp4", "no such file"),
        ("concat:a.ts|b.ts", "no such file"),
        ("lavfi:testsrc", "no such file"),
        ("frame%03d.png", "no such file"),
        ("/dev/zero", "is not a file"),
        ("a\0b.mp4", "cannot be a file: embedded null"),
        ("x" * 300, "cannot be a file: File name too long"),
        ("x/" * 3000, "cannot be a file: File name too long"),
    ],
)
def test_what_is_no_file_is_refused(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        Image.fromarray(picture(number)).save(tmp_path / f"frame{number:03d}.png")
    with pytest.raises(VideoError, match=words) as caught:
        sample_video(Path(name), ALL)
    assert ("download" in (caught.value.hint or "")) == name.startswith("https")


def test_a_pattern_of_a_sequence_is_a_name_like_any_other(tmp_path: Path) -> None:
    for number, name in enumerate(("frame%03d.png", "frame000.png", "frame001.png")):
        Image.fromarray(picture(number)).save(tmp_path / name)
    video = sample_video(tmp_path / "frame%03d.png", ALL)
    assert [number_in(frame) for frame in video.frames] == [0]


def test_a_link_that_leads_in_circles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="cannot be a file"):
        sample_video(tmp_path / "a.mp4", ALL)


def test_a_title_in_another_encoding_does_no_harm(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "clip.mp4", 3, container_options={"movflags": "faststart"}, title="a title"
    )
    content = path.read_bytes()
    assert content.count(b"a title") == 1
    path.write_bytes(content.replace(b"a title", b"\xff\xfe\xe9itle"))
    assert sample_video(path, ALL).total_frames == 3


@pytest.mark.parametrize("raised", [OverflowError, ValueError, MemoryError, RuntimeError, KeyError])
def test_whatever_the_decoder_raises_is_bad_input(
    raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise raised("planted")

    path = write_clip(tmp_path / "clip.mp4")
    monkeypatch.setattr(media, "_turned", fail)
    with pytest.raises(VideoError, match=r"clip\.mp4: frame 0 cannot be made RGB: .*planted"):
        sample_video(path, ALL)
    monkeypatch.setattr(media.av, "open", fail)
    with pytest.raises(VideoError, match=r"clip\.mp4 is not a video, or is damaged: .*planted"):
        sample_video(path, ALL)


def _limit(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_PIXELS", pixels)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "a.jpg", "a.mp4", "a.webm", "a.h264"])
def test_pictures_have_a_limit_of_pixels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    if path.suffix in (".png", ".webp", ".gif", ".jpg"):
        Image.fromarray(picture(1, (640, 480))).save(path)
    else:
        codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
        write_clip(path, 3, size=(640, 480), codec=codec)
    _limit(640 * 480, monkeypatch)
    assert sample_video(path, ALL).width == 640
    _limit(640 * 480 - 1, monkeypatch)
    with pytest.raises(
        VideoError, match=r"has pictures of 640 x 480 pixels .*, and at most 0 mega"
    ):
        sample_video(path, ALL)


def test_a_stream_that_grows_beyond_the_limit_ends_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_clip(tmp_path / "small.h264", 10, options={"bf": "0"}).read_bytes()
    large = write_clip(tmp_path / "large.h264", 10, size=(640, 480)).read_bytes()
    path = tmp_path / "grows.h264"
    path.write_bytes(small + large)
    assert {frame.shape for frame in sample_video(path, ALL).frames} == {(48, 64, 3), (480, 640, 3)}
    _limit(100_000, monkeypatch)
    video = sample_video(path, ALL)
    assert {frame.shape for frame in video.frames} == {(48, 64, 3)}
    assert "pictures of 640 x 480 pixels" in video.notes[0]


def _large_png(path: Path) -> None:
    Image.new("L", (12_000, 12_000), 200).save(path, compress_level=1)


def _large_webp(path: Path) -> None:
    Image.new("L", (12_000, 12_000), 200).save(path)


def _jpeg_after_small_ones(path: Path) -> None:
    Image.fromarray(picture(1)).convert("L").save(path, "jpeg")
    small = path.read_bytes()
    Image.new("L", (12_000, 12_000), 200).save(path, "jpeg")
    path.write_bytes(small * 5 + path.read_bytes())


@pytest.mark.parametrize("make", [_large_png, _large_webp, _jpeg_after_small_ones])
def test_a_huge_picture_takes_little_memory(make: Callable[[Path], None], tmp_path: Path) -> None:
    """12,000 x 12,000 pixels as RGB are 432 MB."""
    path = tmp_path / "large.png"
    make(path)
    code = """if True:
        import re, sys
        from pathlib import Path
        from tc_export.errors import VideoError
        from tc_export.runtime.video import Uniform, sample_video
        try:
            said = sample_video(Path(sys.argv[1]), Uniform(frames=16)).notes
        except VideoError as error:
            said = str(error)
        print(said)
        # Not ru_maxrss, which begins with what the parent had.
        status = Path("/proc/self/status").read_text()
        print(int(re.search("VmHWM:(.*)kB", status)[1]) * 1024)
    """
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    said, peak_bytes = result.stdout.splitlines()
    assert "12000 x 12000" in said or "damaged after frame 4" in said
    assert int(peak_bytes) < 300e6


# Changes bytes of the files that it is given, in a process that may crash or run out of memory.
FUZZ = """if True:
    import collections, json, random, sys, time
    from pathlib import Path
    from tc_export.errors import VideoError
    from tc_export.runtime.video import Rate, Uniform, sample_video

    chance = random.Random(7)
    place, mutations, *sources = sys.argv[1:]
    place = Path(place)

    def mutate(content):
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            near_head = min(len(content), 1500)
            at = chance.randrange(chance.choice((near_head, len(content))))
            match chance.randrange(6):
                case 0: content[at] ^= 1 << chance.randrange(8)
                case 1: content[at] = chance.choice((0, 127, 128, 255))
                case 2: content[at : at + 4] = chance.choice(
                    (b"\\xff" * 4, bytes(4), b"\\x7f\\xff\\xff\\xff", b"\\x80\\0\\0\\0"))
                case 3: del content[at : at + chance.randrange(1, 60)]
                case 4: content[at:at] = content[at : at + chance.randrange(1, 60)]
                case 5: content[at : at + 8] = chance.randbytes(8)
        return content

    ends = collections.Counter()
    for number in range(int(mutations)):
        source = Path(sources[number % len(sources)])
        place.write_bytes(mutate(bytearray(source.read_bytes())))
        sampling = chance.choice((Uniform(frames=4), Rate(fps=3, max_frames=8)))
        start = time.process_time()
        try:
            sample_video(place, sampling)
            end = "a video"
        except VideoError as error:
            end = "VideoError"
            assert str(place) in str(error) or "frames a second" in str(error), error
        except BaseException as error:
            end = f"{source.name}, mutation {number}: {error!r}"
        ends[end] += 1
        assert time.process_time() - start < 20, f"{source.name}, mutation {number}"
    print(json.dumps(ends))
"""


def _fuzzed_files(folder: Path) -> Sequence[Path]:
    one = 1 << 16
    turned = [0, one, 0, -one, 0, 0, 0, 0, 1 << 30]
    faststart = {"movflags": "faststart"}
    pictures = [Image.fromarray(picture(number)) for number in range(4)]
    pictures[0].save(folder / "a.gif", save_all=True, append_images=pictures[1:], duration=200)
    for suffix in ("png", "jpeg", "webp"):
        pictures[1].save(folder / f"a.{suffix}")
    return [
        write_clip(
            folder / "a.mp4", 6, container_options=faststart, display_matrix=turned, title="Title"
        ),
        write_clip(folder / "a.webm", 6, codec="libvpx-vp9", title="Title"),
        write_clip(folder / "a.mkv", 6),
        write_clip(folder / "a.avi", 6, codec="mpeg4"),
        write_clip(folder / "a.ts", 6),
        write_sound(folder / "a.mp3", cover=True),
        *sorted(folder.glob("a.[gpjw]*[fgp]")),
    ]


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))


def test_bytes_changed_anywhere_are_bad_input_or_a_video(tmp_path: Path) -> None:
    sources = map(str, _fuzzed_files(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path / "fuzzed"), "800", *sources],
        capture_output=True,
        text=True,
        preexec_fn=_limit_memory,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout)
    assert ends.keys() == {"a video", "VideoError"}
    assert min(ends.values()) > 100
