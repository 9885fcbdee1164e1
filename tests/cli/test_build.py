# SPDX-License-Identifier: Apache-2.0
"""`tc-export build`: what it refuses, and what an interrupt leaves."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tc_export.bundle import Profile, read_manifest
from tc_export.checkpoint.hf_config import read_config
from tc_export.config import AttentionMask
from tc_export.engine.session import DecoderSession
from tc_export.model.positions import Clip, Text
from tc_export.parity.judged_bundle import open_with_checkpoint
from tc_export.runtime.answering import VideoLanguageModel
from tests.bundled import save_with_tokenizer
from tests.checkpoint.families import edit_config, edit_weights, save_small
from tests.cli.running import run
from tests.runtime.tokenizers_for_tests import sentencepiece_like

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--target", "toaster"), 2, "toaster"),
        (("--max-frames", 1000), 2, "are 4000 tokens"),
        (("--max-length", 100_000), 2, "context of 256 tokens"),
        (("--gamma", -1), 2, "gamma"),
        (("--pooling-stride", 0), 2, "pooling-stride"),
        (("--pooling-stride", 9), 2, "stride 9 exceeds the 4 patches"),
        (("--pooling-mode", "sum"), 2, "pooling-mode"),
        (("--vision-features", "full"), 2, "full asked for, default in the checkpoint"),
        (("--precision", "fp8"), 2, "cpu has: float32"),
        (("--release", "99"), 2, "has no release '99'"),
    ],
)
def test_wrong_builds(tmp_path, options, code, words, capsys) -> None:  # type: ignore[no-untyped-def]
    checkpoint = save_with_tokenizer(tmp_path / "checkpoint")
    output = tmp_path / "out"
    found, _, err = run(capsys, "build", "--checkpoint", checkpoint, "--output", output, *options)
    assert found == code
    assert words in err
    assert sorted(tmp_path.iterdir()) == [checkpoint]


@pytest.mark.parametrize(
    ("family", "is_said"),
    [("llava", False), ("llava_next_vicuna", True), ("llava_next_video", True)],
)
def test_llava_nexts_tiles_are_not_used_and_it_is_said(
    family: str, is_said: bool, tmp_path: Path, capsys: Capture
) -> None:
    """Before anything is done: this build ends early, by a tokenizer of another checkpoint."""
    save_small(tmp_path / "checkpoint", family)
    sentencepiece_like(["<image>"]).save_pretrained(tmp_path / "checkpoint")
    options = ("--checkpoint", tmp_path / "checkpoint", "--output", tmp_path / "out")
    code, _, err = run(capsys, "build", *options, "--max-frames", 2)
    assert code == 3
    assert ("tiles (anyres) are not used" in err) == is_said


def test_the_release_is_said_with_the_others_that_there_are(  # type: ignore[no-untyped-def]
    tmp_path, capsys
) -> None:
    checkpoint = save_with_tokenizer(tmp_path / "checkpoint")  # heads that no kernel takes
    arguments = ("build", "--checkpoint", checkpoint, "--output", tmp_path / "out")
    code, _, err = run(capsys, *arguments, "--target", "orin")
    assert code == 2
    newest = "orin: builds for JetPack 7.2 (L4T 39.2, CUDA 13.2, TensorRT 10.16)"
    assert f"{newest}; --release also takes 10.3 (JetPack 6.2)" in err
    _, _, err = run(capsys, *arguments, "--target", "orin", "--release", "10.3")
    assert "orin: builds for JetPack 6.2 (" in err
    _, _, err = run(capsys, *arguments, "--target", "rtx4090")
    assert "rtx4090: builds for TensorRT-RTX 1.7, CUDA 13 (" in err
    assert "--release also takes" not in err


def test_not_a_checkpoint(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    for folder in (tmp_path, tmp_path / "none"):
        code, _, err = run(capsys, "build", "--checkpoint", folder, "--output", tmp_path / "out")
        assert code == 3
        assert str(folder) in err.replace(" ", "")


def settings_printed(*arguments: object, folder: Path) -> dict[str, tuple[str, str]]:
    """The rows of the table that a build prints, by setting: the value, and where it came from."""
    ended = subprocess.run(
        [sys.executable, "-m", "tc_export", "build", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    cells = [line.strip("│").split("│") for line in ended.stderr.splitlines() if "│" in line]
    return {setting.strip(): (value.strip(), source.strip()) for setting, value, source in cells}


def test_a_build_that_is_told_nothing_but_the_target(tmp_path: Path) -> None:
    """The checkpoint is found, the output has a place, and the table says who chose what."""
    save_with_tokenizer(tmp_path / "checkpoints" / "small")
    (tmp_path / "tc-export.toml").write_text(
        "[profile]\nmax_frames = 3\n[temporal]\nmask = 'causal'\n[build]\nparity = false\n"
    )
    found = settings_printed("--target", "cpu", "--max-length", 100, folder=tmp_path)
    bundle = tmp_path / "engines" / "out" / "small-cpu"
    manifest = read_manifest(bundle)
    assert manifest.profile == Profile(max_frames=3, max_length=100)
    assert read_config(bundle).model.temporal.mask is AttentionMask.CAUSAL
    assert found == {
        "checkpoint": ("checkpoints/small", "found here"),
        "output": ("engines/out/small-cpu", "default"),
        "target": ("cpu", "flag"),
        "precision": ("float32", "default (the target's first)"),
        "profile.max_frames": ("3", "tc-export.toml"),
        "profile.max_length": ("100", "flag"),
        "temporal.gamma": ("1.0", "default (the method's)"),
        "temporal.mask": ("causal", "tc-export.toml"),
        "temporal.after_clip": ("restart", "default (the method's)"),
        "pooling.stride": ("2", "default (2x2 as the method pools)"),
        "pooling.mode": ("average", "default (as the method pools)"),
        "pooling.before_projector": ("False", "default (as the method pools)"),
        "vision.features": ("default", "checkpoint"),
        "cache.kv": ("16", "default (the decoder's own format)"),
        "tokens per frame": ("4", "computed"),
        "build.parity": ("False", "tc-export.toml"),
        "build.weights": ("auto", "default"),
        "build.memory": ("-", "default (two thirds of what is free)"),
        "build.parts": ("auto", "default"),
        "build.jobs": ("1", "default"),
    }


@torch.no_grad()
def test_stock_llava_with_its_class_token(tmp_path: Path) -> None:
    """Built with parity; and its engines say what transformers' LLaVA says of the same image."""
    checkpoint = save_with_tokenizer(tmp_path / "small")
    edit_config(checkpoint, lambda document: document.pop("vision_feature_select_strategy"))
    flags = ("--gamma", 0, "--mask", "causal", "--vision-features", "full")
    profile = ("--max-frames", 2, "--max-length", 60)
    found = settings_printed("--checkpoint", "small", *flags, *profile, folder=tmp_path)
    assert found["pooling.stride"] == ("1", "default (stock LLaVA does not pool)")
    assert found["vision.features"] == ("full", "flag")
    assert found["tokens per frame"] == ("17", "computed")
    bundle = tmp_path / "engines" / "out" / "small-cpu"
    assert json.loads((bundle / "parity" / "report.json").read_text())["passed"]
    _, judged = open_with_checkpoint(bundle, None)  # as `tc-export parity` does
    assert judged.config.model == read_config(bundle).model

    opened = VideoLanguageModel.open(bundle, threads=1)
    pixels = np.random.default_rng(3).standard_normal((1, 3, 32, 32), dtype=np.float32)
    features = opened.engines.vision.run({"pixel_values": pixels})["visual_features"]
    image = opened.config.image_token_id
    tokens = np.array([1, 5, *[image] * 17, 7, 8, 9])
    embeds = opened._embedding(np.where(tokens == image, 0, tokens))
    embeds[tokens == image] = features.reshape(-1, features.shape[-1])
    session = DecoderSession(opened.engines.decoder, opened.config.model, 60)
    logits = session.prefill(embeds, [Text(2), Clip(1, 17), Text(3)])

    edit_config(checkpoint, lambda document: document.update(vision_feature_select_strategy="full"))
    theirs = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    expected = theirs(
        input_ids=torch.from_numpy(tokens)[None], pixel_values=torch.from_numpy(pixels)
    ).logits[0, -1]
    # Both compute in float32; they differ in the order of sums only.
    room = 32 * torch.finfo(torch.float32).eps * float(expected.abs().max())
    assert np.abs(np.asarray(logits).reshape(-1) - expected.numpy()).max() <= room


def test_what_the_file_takes_part_in_is_said(tmp_path: Path, capsys: Capture) -> None:
    checkpoint = save_with_tokenizer(tmp_path / "small")
    file = tmp_path / "[red]own\x1b[31m.toml"
    file.write_text(f'checkpoint = "{checkpoint}"\nrelease = "[blue]9\\u001b"\n')
    code, _, err = run(capsys, "build", "--config", file)
    assert code == 2
    assert "cpu has no release '[blue]9\\x1b'" in err
    assert f"{tmp_path}/[red]own\\x1b[31m.toml states checkpoint, release" in err
    assert "\x1b" not in err


def test_a_checkpoint_beside_which_no_bundle_can_be_made(
    working_folder: Path, capsys: Capture
) -> None:
    save_with_tokenizer(working_folder / "small")
    (working_folder / "engines").touch()
    code, _, err = run(capsys, "build", "--max-frames", 2)
    assert code == 2
    assert "the folder engines/out cannot be made" in err
    assert "--output DIR" in err


def test_weights_that_are_not_numbers(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
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


def test_a_reflink_that_cannot_be(tmp_path, capsys, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    checkpoint, output = save_with_tokenizer(tmp_path / "checkpoint"), tmp_path / "out"
    command = ("build", "--checkpoint", checkpoint, "--output", output, "--max-frames", 2)
    code, _, err = run(capsys, *command, "--weights", "reflink")
    assert code == 4
    said = " ".join(err.split())
    assert "model.safetensors cannot have a reflink" in said
    assert "--weights auto or --weights copy" in said
    assert not output.exists()
    code, _, err = run(capsys, *command, "--weights", "symlink")
    assert code == 2
    assert "reflink" in err


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
