# SPDX-License-Identifier: Apache-2.0
"""The programs in benchmarks/ run, at a small size; none of their figures is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tc_export.native.find import find_native_library
from tests.plugins.tensorrt.conftest import cuda_plugin
from tests.repository import REPOSITORY

__all__ = ["cuda_plugin"]


def figures_of(folder: Path, *words: str) -> dict[str, Any]:
    words = (*words, "--shape", "small", "--folder", str(folder), "--json")
    ended = subprocess.run(
        [sys.executable, "benchmarks/real_size.py", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def test_a_build_is_measured_through_the_front_door(tmp_path: Path) -> None:
    figures = figures_of(tmp_path, "--target", "cpu", "--quantize", "int4-weights")
    assert set(figures) == {
        "target",
        "recipe",
        "ask_seconds",
        "ask_rss_gib",
        "tokens_per_s",
        "seconds",
        "peak_rss_gib",
        "bytes_written_gib",
        "parity",
        "engine",
        "predicted_rss_gib",
    }
    assert (figures["target"], figures["parity"], figures["engine"]) == ("cpu", True, "built")
    assert figures["bytes_written_gib"] < 0.05  # weights are not written a second time


@pytest.mark.slow
def test_engines_in_parts_are_built_through_the_front_door(
    cuda_plugin: Path, tmp_path: Path
) -> None:
    """As 7B is in float16; `cuda_plugin` has compiled the library, or skipped."""
    figures = figures_of(tmp_path, "--target", "rtx4090", "--flags", "--parts 2")
    assert (figures["target"], figures["parity"], figures["engine"]) == ("rtx4090", True, "built")
    engines = tmp_path / "llava-small-rtx4090" / "engines"
    assert {path.name for path in engines.iterdir()} == {
        "vision.engine",
        "decoder_part1.engine",
        "decoder_part2.engine",
    }


def test_false_alarms_are_counted() -> None:
    words = ["--seeds", "2", "--frames", "2", "--image-size", "56", "--precisions", "float16"]
    words += ["--language", "checkpoints/tc-llava-tiny", "--threads", "1", "--json"]
    ended = subprocess.run(
        [sys.executable, "benchmarks/false_alarms.py", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert figures == {"runs": 2, "false_alarms": 0, "ill_conditioned_share": 0.0}
    runs = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert [(run["seed"], run["precision"]) for run in runs] == [(0, "float16"), (1, "float16")]
    assert all(run["tokens"] > 100 for run in runs)


def test_planted_faults_are_caught_and_localised() -> None:
    names = (
        "gamma times 1.01 in a layer",
        "causal inside frames",
        "projector without its first bias",
        "one number of v_proj off by its last bit",
    )
    words = [word for name in names for word in ("--only", name)]
    ended = subprocess.run(
        [sys.executable, "benchmarks/planted_faults.py", "--json", "--max-length", "80", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["planted"], found["caught"], found["localised"]) == (4, 3, 3), ended.stderr
    assert [x["name"] for x in found["not_visible"]] == list(names[3:])
    by_name = {x["name"]: x for x in found["faults"]}
    assert by_name[names[0]]["pattern"] == "temporal position"
    assert by_name[names[1]]["pattern"] == "mask"
    assert by_name[names[2]]["layer"] == "vision"
    assert not by_name[names[3]]["caught"]
    assert by_name[names[3]]["layer"] is None


ROW = {"recipe", "bytes", "perplexity", "kl", "accuracy", "peer"}


def test_recipes_are_measured_kept_and_drawn(tmp_path: Path) -> None:
    """Text is nothing that the demonstration model knows; it reads it all the same."""
    words = ["--checkpoint", "checkpoints/tc-llava-tiny", "--passages", "2", "--items", "1"]
    words += ["--recipe", "int4-weights", "--store", "--results", str(tmp_path), "--json"]
    program = [sys.executable, "benchmarks/quantisation.py"]
    options: dict[str, Any] = {"cwd": REPOSITORY, "capture_output": True, "text": True}
    ended = subprocess.run([*program, *words], **options, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = json.loads(ended.stdout)
    assert [row["recipe"] for row in rows] == ["none", "int4-weights"]
    before, after = rows
    assert set(before) == set(after) >= ROW
    assert (before["kl"], before["same_token"], before["lost"], before["won"]) == (0.0, 1.0, 0, 0)
    assert after["bytes"] == after["accuracy_bytes"] < before["bytes"] / 4
    assert after["kl"] > 0
    assert after["accuracy_items"] == 36
    assert not after["peer"]
    assert json.loads((tmp_path / "quantisation.json").read_text()) == rows
    (tmp_path / "quantisation.png").unlink()
    words = ["--report", "--results", str(tmp_path), "--json"]
    ended = subprocess.run([*program, *words], **options, check=False)
    assert json.loads(ended.stdout) == rows
    assert (tmp_path / "quantisation.png").read_bytes().startswith(b"\x89PNG")


def test_a_session_is_measured_beside_one_shot(tmp_path: Path) -> None:
    library = find_native_library()
    if library is None:
        pytest.skip("the native library is not built: make setup, with CMake and a compiler")
    words = ["--shape", "small", "--frames", "2", "--frames", "4", "--repeats", "1", "--json"]
    ended = subprocess.run(
        [sys.executable, "benchmarks/streaming.py", *words, "--folder", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout)
    assert (figures["shape"], figures["threads"]) == ("small", 1)
    few, more = figures["measured"]
    assert (few["frames"], more["frames"]) == (2, 4)
    assert more["rows"] - few["rows"] == 2 * 4, "two frames of four tokens"
    seconds = {name for name in few if name.endswith("_s")}
    assert seconds == {"append_s", "first_token_s", "question_s", "attention_s", "one_shot_s"}
    assert all(row[name] > 0 for row in (few, more) for name in seconds)
    assert isinstance(figures["of_the_bar"], float)
