# SPDX-License-Identifier: Apache-2.0
"""What others have for ONNX works on a bundle with weights of its own: tried as a user types it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

from tc_export.bundle import Placement
from tc_export.pipeline import build
from tc_export.runner import SilentReporter
from tests.bundled import copy_bundle, request_for

OUTPUT_OF = {"vision": "visual_features", "decoder": "logits"}
GRAPHS = tuple(OUTPUT_OF)


@pytest.fixture(scope="module")
def copied(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle, built with `--weights copy` beside one that is the same otherwise."""
    folder: Path = tmp_path_factory.mktemp("copied")
    copy_bundle(bundle, folder)
    request = request_for(bundle.parent / "checkpoint", folder / "apart")
    build(replace(request, weights=Placement.COPY), SilentReporter())
    return request.output


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sysconfig.get_path("scripts"), program), *arguments],
        cwd=folder,
        env=os.environ | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def polygraphy(folder: Path, *arguments: str) -> str:
    """Run Polygraphy, and return what it said."""
    ended = run(folder, "polygraphy", *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def judge(bundle: Path, graph: str, path: str, *, tolerance: float) -> bool:
    """True where Polygraphy finds that the graph at `path` computes the golden outputs."""
    data = f"golden/{graph}"
    ended = run(
        bundle,
        "polygraphy",
        *("run", path, "--onnxrt"),
        *("--load-inputs", f"{data}/inputs.json", "--load-outputs", f"{data}/outputs.json"),
        *("--atol", repr(tolerance), "--rtol", "0"),
    )
    assert "Accuracy Summary" in ended.stdout, ended.stdout + ended.stderr
    return ended.returncode == 0


def tolerance_of(bundle: Path, graph: str) -> float:
    index = json.loads((bundle / "golden" / "golden.json").read_text())
    ((tolerance),) = (output["tolerance"] for output in index[graph]["outputs"].values())
    return float(tolerance)


@pytest.mark.parametrize("graph", GRAPHS)
def test_onnx_checks_it(copied: Path, graph: str) -> None:
    ended = run(copied, "check-model", f"graphs/{graph}.onnx")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("graph", GRAPHS)
def test_polygraphy_inspects_it(copied: Path, graph: str) -> None:
    said = polygraphy(copied, "inspect", "model", f"graphs/{graph}.onnx", "--show", "weights")
    assert OUTPUT_OF[graph] in said
    assert f"{graph}." in said


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_polygraphy_runs_it_with_the_golden_data(copied: Path, graph: str) -> None:
    tolerance = tolerance_of(copied, graph)
    assert judge(copied, graph, f"graphs/{graph}.onnx", tolerance=tolerance)
    assert not judge(copied, graph, f"graphs/{graph}.onnx", tolerance=tolerance / 1000)


@pytest.mark.slow
@pytest.mark.parametrize("graph", GRAPHS)
def test_surgeon_sanitizes_it(copied: Path, tmp_path: Path, graph: str) -> None:
    made = str(tmp_path / "sane.onnx")
    polygraphy(
        copied, "surgeon", "sanitize", "--fold-constants", f"graphs/{graph}.onnx", "--output", made
    )
    # What is folded rounds elsewhere.
    assert judge(copied, graph, made, tolerance=4 * tolerance_of(copied, graph))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("graph", "output"), [("vision", "visual_features"), ("decoder", "logits")]
)
def test_surgeon_extracts_from_it(copied: Path, tmp_path: Path, graph: str, output: str) -> None:
    made = str(tmp_path / "part.onnx")
    polygraphy(
        copied,
        *("surgeon", "extract", f"graphs/{graph}.onnx"),
        *("--outputs", f"{output}:auto", "--output", made),
    )
    assert judge(copied, graph, made, tolerance=4 * tolerance_of(copied, graph))


def test_a_hard_link_is_what_they_refuse(copied: Path, tmp_path: Path) -> None:
    """So that the tests above show something; a plain `cp -r` of such a bundle mends it."""
    linked = Path(shutil.copytree(copied, tmp_path / "linked"))
    os.link(linked / "graphs" / "model.safetensors", tmp_path / "model.safetensors")
    ended = run(linked, "check-model", "graphs/decoder.onnx")
    assert ended.returncode != 0
    assert "hard link" in ended.stderr
    again = shutil.copytree(linked, tmp_path / "again")
    assert run(Path(again), "check-model", "graphs/decoder.onnx").returncode == 0
