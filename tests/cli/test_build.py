# SPDX-License-Identifier: Apache-2.0
"""`tc-export build`: what it refuses, and what an interrupt leaves."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bundled import save_with_tokenizer
from tests.checkpoint.families import edit_weights
from tests.cli.running import run


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--target", "toaster"), 2, "toaster"),
        (("--max-frames", 1000), 2, "are 4000 tokens"),
        (("--max-length", 100_000), 2, "context of 256 tokens"),
        (("--gamma", -1), 2, "gamma"),
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


def test_not_a_checkpoint(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    for folder in (tmp_path, tmp_path / "none"):
        code, _, err = run(capsys, "build", "--checkpoint", folder, "--output", tmp_path / "out")
        assert code == 3
        assert str(folder) in err.replace(" ", "")


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
