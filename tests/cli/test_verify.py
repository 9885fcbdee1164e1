# SPDX-License-Identifier: Apache-2.0
"""`tc-export verify`: it passes a whole bundle, and names what is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bundled import copy_bundle
from tests.cli.running import run


def test_a_whole_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", bundle)[0] == 0
    code, out, _ = run(capsys, "verify", bundle, "--json")
    assert code == 0
    assert json.loads(out) == {"passed": True, "problems": []}


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


def test_not_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "verify", tmp_path / "none")[0] == 3
