# SPDX-License-Identifier: Apache-2.0
"""`tc-export targets`: figures with their marks, and a table that fits a narrow terminal."""

from __future__ import annotations

import json

import pytest

from tc_export.targets import list_targets
from tests.cli.running import run

Capture = pytest.CaptureFixture[str]


def test_targets_lists_figures_with_their_marks(capsys: Capture) -> None:
    code, out, _ = run(capsys, "targets")
    assert code == 0
    row = next(line for line in out.splitlines() if "thor-t4000" in line)
    assert "150†" in row
    assert "300†?" in row
    code, out, _ = run(capsys, "targets", "--json")
    assert code == 0
    assert {"orin-nano", "b200", "cpu"} <= {target["name"] for target in json.loads(out)}


def test_the_table_is_whole_at_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run(capsys, "targets")
    assert "…" not in out
    for target in list_targets():
        row = next(line.split() for line in out.splitlines() if line.split()[:1] == [target.name])
        assert row[-1] == target.toolchain.engine
