# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, its exit codes, and what it says of bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tc_export.checkpoint.safetensors_file import read_header
from tc_export.cli.main import main
from tests.bundled import MAX_FRAMES, copy_bundle, save_with_tokenizer
from tests.checkpoint.families import edit_weights
from tests.runtime.clips import write_clip, write_sound

VERBS = ("build", "ask", "parity", "inspect", "verify", "targets", "plan", "doctor")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed, without the terminal's breaks."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    code = ended.value.code
    assert "Traceback" not in printed.err
    return (0 if code is None else int(code)), printed.out, " ".join(printed.err.split())


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", 12)


def test_every_verb_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    code, listed, _ = run(capsys, "--help")
    assert code == 0
    for verb in VERBS:
        assert verb in listed
        code, text, _ = run(capsys, verb, "--help")
        assert code == 0
        assert f"tc-export {verb}" in " ".join(text.split())


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


def test_inspect_and_verify(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", bundle, "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["target"] == "cpu"
    assert facts["precision_realised"] == {"vision": "float32", "decoder": "float32"}
    assert facts["custom_nodes"]["decoder"] == {"TcDualRope": 4, "TcBlockCausalAttention": 2}
    assert run(capsys, "inspect", bundle)[0] == 0
    assert run(capsys, "verify", bundle)[0] == 0


def test_verify_names_a_truncated_file(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = copy_bundle(bundle, tmp_path)
    os.truncate(damaged / "embedding.safetensors", 100)
    code, _, err = run(capsys, "verify", damaged)
    assert code == 1
    assert "embedding.safetensors: truncated" in err
    code, out, _ = run(capsys, "verify", damaged, "--json")
    assert code == 1
    assert [x["path"] for x in json.loads(out)["problems"]] == ["embedding.safetensors"]


def test_parity_passes_and_fails(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "parity", bundle, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["passed"]
    assert {x["tensor"] for x in report["tensors"]} == {"visual_features", "logits"}
    damaged = copy_bundle(bundle, tmp_path)
    shard = damaged / "decoder" / "model.safetensors"
    head = next(x for x in read_header(shard).values() if x.name.endswith("lm_head.weight"))
    raw = np.fromfile(shard, dtype=np.uint8)
    weight = raw[head.offset : head.offset + head.nbytes]
    weight[:] = np.roll(weight, head.nbytes // 2)
    raw.tofile(shard)
    code, out, err = run(capsys, "parity", damaged)
    assert code == 1
    assert "FAILED" in out
    assert "should be" in err


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
        assert run(capsys, "inspect", tmp_path)[0] == 3
        assert run(capsys, "verify", tmp_path / "none")[0] == 3

    def test_a_damaged_graph(self, bundle, tmp_path, clip, capsys) -> None:  # type: ignore[no-untyped-def]
        damaged = copy_bundle(bundle, tmp_path)
        os.truncate(damaged / "decoder" / "model.onnx", 1000)
        code, err = self.ask(capsys, damaged, clip)
        assert code == 3
        assert "tc-export verify" in err

    def test_the_checkpoint_has_moved(self, bundle, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
        moved = copy_bundle(bundle, tmp_path)
        config = json.loads((moved / "config.json").read_text())
        config["builder_config"]["checkpoint"] = str(tmp_path / "gone")
        (moved / "config.json").write_text(json.dumps(config))
        code, _, err = run(capsys, "parity", moved)
        assert code == 3
        assert "--checkpoint" in err

    @pytest.mark.parametrize(
        ("options", "code", "words"),
        [
            (("--target", "toaster"), 2, "toaster"),
            (("--max-frames", 1000), 2, "are 4000 tokens"),
            (("--max-length", 100_000), 2, "context of 256 tokens"),
            (("--gamma", -1), 2, "gamma"),
        ],
    )
    def test_wrong_builds(self, tmp_path, options, code, words, capsys) -> None:  # type: ignore[no-untyped-def]
        checkpoint = save_with_tokenizer(tmp_path / "checkpoint")
        output = tmp_path / "out"
        found, _, err = run(
            capsys, "build", "--checkpoint", checkpoint, "--output", output, *options
        )
        assert found == code
        assert words in err
        assert sorted(tmp_path.iterdir()) == [checkpoint]

    def test_not_a_checkpoint(self, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
        for folder in (tmp_path, tmp_path / "none"):
            code, _, err = run(
                capsys, "build", "--checkpoint", folder, "--output", tmp_path / "out"
            )
            assert code == 3
            assert str(folder) in err.replace(" ", "")

    def test_weights_that_are_not_numbers(self, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
        checkpoint = save_with_tokenizer(tmp_path / "checkpoint")

        def spoil(tensors):  # type: ignore[no-untyped-def]
            name = next(x for x in tensors if x.endswith("layers.1.mlp.up_proj.weight"))
            tensors[name][0, 0] = float("nan")

        edit_weights(checkpoint, spoil)
        code, _, err = run(
            capsys,
            "build",
            "--checkpoint",
            checkpoint,
            "--output",
            tmp_path / "out",
            "--max-frames",
            2,
        )
        assert code == 3
        assert "layers.1.mlp.up_proj.weight" in err
        assert sorted(tmp_path.iterdir()) == [checkpoint]


def test_interrupting_a_build_keeps_what_is_done(tmp_path: Path) -> None:
    """Ctrl-C: exit code 130, a message, no bundle, and no traceback."""
    checkpoint = save_with_tokenizer(tmp_path / "checkpoint")
    output = tmp_path / "out"
    command = [sys.executable, "-m", "tc_export", "build", "--checkpoint", str(checkpoint)]
    process = subprocess.Popen(
        [*command, "--output", str(output), "--max-frames", "2", "--no-parity"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    printed = ""
    while "export the vision graph" not in printed:
        line = process.stderr.readline()
        assert line, printed
        printed += line
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    # Where the interrupt met code that Python was running from a string, Python ends itself by the
    # signal after our handler: a shell says 130 of either.
    assert process.wait(60) in (130, -signal.SIGINT), printed + rest
    assert "the same command resumes" in " ".join(rest.split())
    assert "Traceback" not in rest
    assert not output.exists()
