# SPDX-License-Identifier: Apache-2.0
"""`tc-export inspect`: what a bundle says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bundled import copy_bundle
from tests.cli.running import run


def test_inspect(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", bundle, "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["target"] == "cpu"
    assert facts["precision_realised"] == {"vision": "float32", "decoder": "float32"}
    assert facts["custom_nodes"]["decoder"] == {"TcDualRope": 4, "TcBlockCausalAttention": 2}
    assert run(capsys, "inspect", bundle)[0] == 0


def test_not_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "inspect", tmp_path)[0] == 3


def test_a_bundle_of_a_hostile_name(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = tmp_path / "[red]:cat:\x1b[31m"
    hostile.mkdir()
    _, out, _ = run(capsys, "inspect", copy_bundle(bundle, hostile))
    assert "[red]:cat:\\x1b[31m" in "".join(out.split())
    assert "\x1b" not in out
