# SPDX-License-Identifier: Apache-2.0
"""`tc-export plan`, as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.plan.configs import save_vicuna_config

Capture = pytest.CaptureFixture[str]


def test_plan_from_a_config_alone(tmp_path: Path, capsys: Capture) -> None:
    folder = save_vicuna_config(tmp_path / "vicuna")
    options = ("--target", "orin", "--precision", "vision=fp16,decoder=bf16", "--frames", 8)
    reports = []
    for checkpoint in (folder, folder / "config.json"):
        chart = tmp_path / "chart.png"
        code, out, _ = run(
            capsys, "plan", "--checkpoint", checkpoint, *options, "--chart", chart, "--json"
        )
        assert code == 0
        assert chart.is_file()
        reports.append(json.loads(out))
    assert reports[0] == reports[1]
    report = reports[0]
    assert report["fits"] is True
    assert report["max_frames"] == 27
    assert report["precision"] == {"vision": "float16", "decoder": "bfloat16"}
    assert report["predicted"]["decode_tokens_per_s"] > 0
    code, out, _ = run(capsys, "plan", "--checkpoint", folder, *options)
    assert code == 0
    assert "tokens left for question and answer: 27" in " ".join(out.split())
    assert "derived: half of the INT8 rate" in " ".join(out.split())


def test_plan_says_what_would_help(tmp_path: Path, capsys: Capture) -> None:
    folder = save_vicuna_config(tmp_path)
    code, out, _ = run(capsys, "plan", "--checkpoint", folder, "--target", "orin-nx")
    assert code == 0
    assert "--target orin-32gb" in out
    assert "INT4" not in out


def test_plan_reads_the_file_of_settings(
    working_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    """What build would make is what is planned: pooling, profile and target."""
    save_vicuna_config(tmp_path / "vicuna")
    file = working_folder / "tc-export.toml"
    stated = f'checkpoint = "{tmp_path}/vicuna"\nprecision = "bf16"\n[profile]\nmax_frames = 3\n'
    file.write_text(f'target = "orin"\n{stated}')
    code, out, _ = run(capsys, "plan", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["target"], report["frames"]) == ("orin", 3)
    assert report["precision"] == {"vision": "bfloat16", "decoder": "bfloat16"}
    tokens = report["tokens_per_frame"]
    assert json.loads(run(capsys, "plan", "--frames", 4, "--json")[1])["frames"] == 4
    by_flag = json.loads(run(capsys, "plan", "--pooling-stride", 1, "--json")[1])
    assert by_flag["tokens_per_frame"] == 4 * tokens
    file.write_text(f'target = "orin"\n{stated}[temporal]\ngamma = 0\nmask = "causal"\n')
    assert json.loads(run(capsys, "plan", "--json")[1])["tokens_per_frame"] == 4 * tokens
    file.write_text(f'target = ["orin", "thor"]\n{stated}')
    code, _, err = run(capsys, "plan")
    assert code == 2
    assert "a plan is for one target, and tc-export.toml names orin, thor" in err
    assert run(capsys, "plan", "--target", "thor")[0] == 0


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--target", "orni"), 2, "did you mean orin?"),
        (("--target", "none.toml"), 3, "cannot be read"),
        (("--target", "orin", "--precision", "fp8"), 2, "orin has: float16, bfloat16"),
        (("--target", "orin", "--frames", 29), 2, "29 frames of 144"),
        (("--target", "orin", "--frames", 0), 2, "--frames"),
        (("--target", "orin", "--vision-features", "full"), 2, "--pooling-stride 1"),
        (("--target", "orin", "--max-length", 5000), 2, "context of 4096"),
        (("--target", "orin", "--chart", "none/c.png"), 2, "cannot be written"),
    ],
)
def test_wrong_plans(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    options: tuple[object, ...],
    code: int,
    words: str,
) -> None:
    folder = save_vicuna_config(tmp_path / "vicuna")
    monkeypatch.chdir(tmp_path)
    found, out, err = run(capsys, "plan", "--checkpoint", folder, *options)
    assert (found, out) == (code, "")
    assert words in err


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"model_type": "bert"}', '"\\ud800"'])
def test_wrong_configs(tmp_path: Path, capsys: Capture, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    code, out, err = run(capsys, "plan", "--checkpoint", tmp_path / "config.json")
    assert (code, out) == (3, "")
    assert str(tmp_path.name) in err.replace(" ", "")
