# SPDX-License-Identifier: Apache-2.0
"""The programs in benchmarks/ run, at a small size; none of their figures is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.repository import REPOSITORY


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


def test_a_build_is_measured_through_the_front_door(tmp_path: Path) -> None:
    words = ("--target", "cpu", "--shape", "small", "--folder", tmp_path, "--json")
    ended = subprocess.run(
        [sys.executable, "benchmarks/real_size.py", *map(str, words)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(ended.stdout.splitlines()[-1])
    assert set(figures) == {
        "target",
        "seconds",
        "peak_rss_gib",
        "bytes_written_gib",
        "parity",
        "engine",
    }
    assert (figures["target"], figures["parity"], figures["engine"]) == ("cpu", True, "built")
    assert figures["bytes_written_gib"] < 0.05  # weights are not written a second time
