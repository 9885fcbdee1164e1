# SPDX-License-Identifier: Apache-2.0
"""Names that no file can have, or that few would give one, wherever a verb takes a name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bundled import save_with_tokenizer
from tests.cli.running import run

NAMES = {
    "long": "x" * 300,
    "long in bytes": "é" * 200,
    "just too long for what a build adds": "x" * 250,
    "a long path": "/" + "y/" * 3000,
    "NUL": "a\0b",
    "NUL, of a target": "a\0b.toml",
    "empty": "",
    "nobody's home": "~nobody-of-this-name/x",
    "brackets": "[red]x[/red]",
    "escapes": "\x1b[31mx",
    "undecodable bytes": os.fsdecode(b"\xff\xfe"),
}
# NAME stands for the name, BUNDLE, CHECKPOINT and CLIP for what is whole.
PLACES = [
    "ask NAME --video CLIP --question What?",
    "ask BUNDLE --video NAME --question What?",
    "build --checkpoint NAME --output out",
    "build --checkpoint CHECKPOINT --output missing/below/NAME",
    "build --checkpoint CHECKPOINT --output out --target NAME",
    "build --checkpoint CHECKPOINT --output out --target orin --release NAME",
    "finish NAME",
    "inspect NAME",
    "parity NAME",
    "parity BUNDLE --checkpoint NAME",
    "plan --checkpoint NAME --target orin",
    "plan --checkpoint CHECKPOINT --target NAME",
    "plugins build --target NAME",
    "verify NAME",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_with_tokenizer(tmp_path_factory.mktemp("named") / "checkpoint")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_name_is_bad_input_and_no_bug(
    name: str,
    place: str,
    bundle: Path,
    checkpoint: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    whole = {"BUNDLE": str(bundle), "CHECKPOINT": str(checkpoint), "CLIP": str(clip)}
    words = [whole.get(word, word.replace("NAME", NAMES[name])) for word in place.split()]
    code, out, err = run(capsys, *words)
    assert code in (2, 3), err
    assert "error: " in err
    assert "internal" not in err
    assert not {"\x1b", "\0"} & set(out + err)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_system_names_what_is_too_long(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "verify", "x" * 300, "--json")
    assert code == 3
    assert json.loads(out)["error"]["type"] == "InputError"
    assert f"{'x' * 100}…: File name too long a name has at most 255 bytes" in err


def test_a_build_has_a_longer_name_than_its_bundle(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("build", "--checkpoint", checkpoint, "--output", tmp_path / ("x" * 250))
    code, _, err = run(capsys, *words)
    assert code == 3
    assert "File name too long" in err
    assert list(tmp_path.iterdir()) == []
