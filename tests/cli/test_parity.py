# SPDX-License-Identifier: Apache-2.0
"""`tc-export parity`: its verdict, and one document with --json whatever it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tc_export.bundle.layout import shard_path
from tc_export.checkpoint.safetensors_file import read_header
from tests.bundled import copy_bundle, reseal
from tests.cli.running import run


def test_parity_passes_and_fails(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "parity", bundle, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["passed"]
    assert {x["tensor"] for x in report["tensors"]} == {"visual_features", "logits"}
    damaged = copy_bundle(bundle, tmp_path)
    shard = damaged / shard_path("model.safetensors")
    head = next(x for x in read_header(shard).values() if x.name.endswith("lm_head.weight"))
    raw = np.fromfile(shard, dtype=np.uint8)
    weight = raw[head.offset : head.offset + head.nbytes]
    weight[:] = np.roll(weight, head.nbytes // 2)
    raw.tofile(shard)
    reseal(damaged)
    code, out, err = run(capsys, "parity", damaged)
    assert code == 1
    assert "FAILED" in out
    assert "should be" in err
    code, out, err = run(capsys, "parity", damaged, "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False
    assert "should be" in err


def test_the_checkpoint_has_moved(bundle, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    moved = copy_bundle(bundle, tmp_path)
    config = json.loads((moved / "config.json").read_text())
    config["builder_config"]["checkpoint"] = str(tmp_path / "gone")
    (moved / "config.json").write_text(json.dumps(config))
    reseal(moved)
    code, _, err = run(capsys, "parity", moved)
    assert code == 3
    assert "--checkpoint" in err
