# SPDX-License-Identifier: Apache-2.0
"""`tc-export ask`: what it prints, its exit codes, and what it says of bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tc_export.bundle.layout import graph_path
from tests.bundled import MAX_FRAMES, copy_bundle, reseal
from tests.cli.running import run
from tests.runtime.clips import picture, write_clip, write_sound
from tests.runtime.hostile_templates import HOSTILE


def test_ask_answers_and_says_what_it_saw(
    bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--video", clip, "--question", "What?", "--max-new-tokens", 5)
    code, out, err = run(capsys, "ask", bundle, *options)
    assert code == 0
    assert "clip.mp4" in err
    assert f"{MAX_FRAMES} sampled: 0 (0.00 s), 3" in err
    assert "first after" in err
    as_json = run(
        capsys,
        "ask",
        bundle,
        "--video",
        clip,
        "--question",
        "What?",
        "--max-new-tokens",
        5,
        "--json",
    )
    report = json.loads(as_json[1])
    assert report["answer"] == out.strip()
    assert report["frame_indices"] == [0, 3, 7, 11]
    assert report["new_tokens"] <= 5


def test_ask_samples_with_a_seed(
    bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--video", clip, "--question", "What?", "--max-new-tokens", 8, "--temperature", 3)
    first, again, other = (
        run(capsys, "ask", bundle, *options, "--seed", seed)[1] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_native_and_standard_operators_answer_alike(
    bundle: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tc_export.native.find import find_native_library

    library = find_native_library()
    if library is None or not library.has_onnxruntime_ops:
        pytest.skip("the native library was not built: no C++ compiler or no ONNX Runtime headers")
    options = ("--video", clip, "--question", "What?", "--max-new-tokens", 8)
    with_library, without = (
        run(capsys, "ask", bundle, *options, flag) for flag in ("--native", "--no-native")
    )
    assert with_library[1] == without[1]
    assert "native library is not in use" in without[2]
    assert "native library is not in use" not in with_library[2]


class TestBadInput:
    """Each: the right exit code, and a message that says what was found."""

    def ask(
        self,
        capsys: pytest.CaptureFixture[str],
        bundle: Path,
        video: Path,
        *options: object,
        question: str = "What?",
    ) -> tuple[int, str]:
        code, out, err = run(
            capsys, "ask", bundle, "--video", video, "--question", question, *options
        )
        assert not out.strip()
        return code, err

    def test_no_such_video(self, bundle, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
        code, err = self.ask(capsys, bundle, tmp_path / "none.mp4")
        assert code == 3
        assert "none.mp4" in err

    def test_empty_video(self, bundle, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
        (tmp_path / "empty.mp4").touch()
        assert self.ask(capsys, bundle, tmp_path / "empty.mp4")[0] == 3

    def test_corrupt_video(self, bundle, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
        (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
        assert self.ask(capsys, bundle, tmp_path / "noise.mp4")[0] == 3

    def test_sound_only(self, bundle, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
        code, err = self.ask(capsys, bundle, write_sound(tmp_path / "sound.mp3"))
        assert code == 3
        assert "audio" in err

    def test_question_longer_than_the_context(self, bundle, clip, capsys) -> None:  # type: ignore[no-untyped-def]
        code, err = self.ask(capsys, bundle, clip, question="why " * 500)
        assert code == 2
        assert "the context holds 120" in err

    def test_more_frames_than_the_profile(self, bundle, clip, capsys) -> None:  # type: ignore[no-untyped-def]
        code, err = self.ask(capsys, bundle, clip, "--frames", 99)
        assert code == 2
        assert "99" in err
        assert "--frames 4" in err
        assert self.ask(capsys, bundle, clip, "--fps", 1000)[0] == 3

    def test_frames_and_rate_at_once(self, bundle, clip, capsys) -> None:  # type: ignore[no-untyped-def]
        assert self.ask(capsys, bundle, clip, "--frames", 2, "--fps", 1)[0] == 2

    def test_wrong_sampling(self, bundle, clip, capsys) -> None:  # type: ignore[no-untyped-def]
        code, err = self.ask(capsys, bundle, clip, "--top-p", 7)
        assert code == 2
        assert "top_p" in err

    def test_bundle_of_another_version(self, bundle, tmp_path, clip, capsys) -> None:  # type: ignore[no-untyped-def]
        old = copy_bundle(bundle, tmp_path)
        manifest = json.loads((old / "manifest.json").read_text())
        manifest["format_version"] = 999
        (old / "manifest.json").write_text(json.dumps(manifest))
        code, err = self.ask(capsys, old, clip)
        assert code == 3
        assert "999" in err

    def test_not_a_bundle(self, tmp_path, clip, capsys) -> None:  # type: ignore[no-untyped-def]
        assert self.ask(capsys, tmp_path, clip)[0] == 3

    def test_a_damaged_graph(self, bundle, tmp_path, clip, capsys) -> None:  # type: ignore[no-untyped-def]
        damaged = copy_bundle(bundle, tmp_path)
        os.truncate(damaged / graph_path("decoder"), 1000)
        code, err = self.ask(capsys, damaged, clip)
        assert code == 3
        assert "tc-export verify" in err


@pytest.mark.parametrize("name", ["5,000 nested ifs", "doubling with +", "loops"])
def test_a_hostile_template(
    name: str, bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle is as its manifest says: whoever made it wrote the template."""
    hostile = copy_bundle(bundle, tmp_path)
    (hostile / "chat_template.jinja").write_text(HOSTILE[name])
    code, out, err = run(capsys, "ask", reseal(hostile), "--video", clip, "--question", "What?")
    assert code == 3
    assert not out.strip()
    assert "the chat template" in err


def test_an_image_is_one_frame_and_no_shortage_of_frames(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "still.png")
    options = ("--video", tmp_path / "still.png", "--question", "What?", "--max-new-tokens", 2)
    code, _, err = run(capsys, "ask", bundle, *options)
    assert code == 0
    assert "still.png: 64 x 48, png, an image: one frame" in err
    assert "asked for" not in err
    assert "tiles" not in err
    assert json.loads(run(capsys, "ask", bundle, *options, "--json")[1])["notes"] == []


def test_llava_nexts_tiles_are_not_used_and_it_is_said_of_images(
    bundle: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    next_bundle = copy_bundle(bundle, tmp_path)
    document = json.loads((next_bundle / "config.json").read_text())
    (next_bundle / "config.json").write_text(json.dumps(document | {"model_type": "llava_next"}))
    reseal(next_bundle)
    Image.fromarray(picture(1)).save(tmp_path / "still.png")
    for video, is_said in ((tmp_path / "still.png", True), (clip, False)):
        options = ("--video", video, "--question", "What?", "--max-new-tokens", 2)
        code, _, err = run(capsys, "ask", next_bundle, *options)
        assert code == 0
        assert ("LLaVA-NeXT's tiles (anyres) are not used" in err) == is_said
        notes = json.loads(run(capsys, "ask", next_bundle, *options, "--json")[1])["notes"]
        assert ("tiles" in str(notes)) == is_said


def test_a_video_of_a_hostile_name(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "[red]:cat:\x1b[31mx.mp4", 12)
    options = ("--video", clip, "--question", "[bold]What?", "--max-new-tokens", 2)
    code, out, err = run(capsys, "ask", bundle, *options)
    assert code == 0
    assert "[red]:cat:\\x1b[31mx.mp4" in err
    assert "\x1b" not in out + err
    code, out, _ = run(capsys, "ask", bundle, *options, "--json")
    assert json.loads(out)["video"] == str(clip)
