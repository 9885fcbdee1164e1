# SPDX-License-Identifier: Apache-2.0
"""`tc-export parity`: its verdict, and one document with --json whatever it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tc_export.bundle.layout import shard_path
from tc_export.checkpoint.safetensors_file import read_header
from tc_export.parity.layers import check_bundle
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


def test_by_layer_names_what_differs(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "parity", bundle, "--by-layer", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["passed"]
    assert report["culprit"] is None
    for name in ("isolated", "accumulated"):
        assert len(report[name]) == len(report["layers"])
        assert all(len(row) == len(report["frames"]) for row in report[name])
    assert report["frames"][1] == "frame 1"
    damaged = copy_bundle(bundle, tmp_path)
    shard = damaged / shard_path("model.safetensors")
    name = "layers.1.mlp.up_proj.weight"
    up = next(x for x in read_header(shard).values() if x.name.endswith(name))
    raw = np.fromfile(shard, dtype=np.uint8)
    weight = raw[up.offset : up.offset + up.nbytes]
    weight[:] = np.roll(weight, up.nbytes // 2)
    raw.tofile(shard)
    reseal(damaged)
    code, out, err = run(capsys, "parity", damaged, "--by-layer")
    assert code == 1
    assert "FAILED" in out
    assert "layer 1" in err
    assert "mlp.up_proj" in err
    code, out, _ = run(capsys, "parity", damaged, "--by-layer", "--json")
    assert code == 1
    culprit = json.loads(out)["culprit"]
    assert (culprit["layer"], culprit["tensor"]) == (1, "mlp.up_proj")
    assert {"frame", "node", "pattern"} <= culprit.keys()


def test_by_layer_is_not_for_answers(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "parity", bundle, "--by-layer", "--tasks")
    assert code == 2
    assert "two different comparisons" in err


def test_an_engine_shows_no_layers_and_its_graphs_do(
    bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a bundle of TensorRT, whose engine could not even be opened here."""
    monkeypatch.setattr(check_bundle, "ONNX_RUNTIME", "another backend")
    code, out, _ = run(capsys, "parity", bundle, "--by-layer", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["notes"] == [check_bundle.ENGINES_SHOW_NO_LAYERS]
    assert "native library" not in report["judged"]
