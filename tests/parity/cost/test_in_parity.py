# SPDX-License-Identifier: Apache-2.0
"""`tc-export parity --tasks` of a quantised bundle: two questions apart, from the front door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tc_export
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.parity.cost.result import Cost, NotMeasured
from tc_export.quantize.checkpoint import quantize_checkpoint
from tc_export.recipes import load_recipe
from tc_export.tasks import Kind
from tc_export.tasks.clips import STEPS
from tests.cli.running import run
from tests.repository import DEMO_CHECKPOINT

OPTIONS = ("--tasks", "--items", 2, "--no-native", "--threads", 1)

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.xdist_group("quantised_bundle")


def build(checkpoint: Path, folder: Path) -> Path:
    tc_export.build(checkpoint, output=folder, max_frames=STEPS, check_parity=False)
    return folder


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `source`, `int4` made from it, and the bundle `bundle`. Not to be changed."""
    folder: Path = tmp_path_factory.mktemp("quantised")
    source = Path(shutil.copytree(DEMO_CHECKPOINT, folder / "source"))
    recipe = load_recipe("int4-weights")
    quantize_checkpoint(open_checkpoint(source), recipe, folder / "int4")
    build(folder / "int4", folder / "bundle")
    return folder


def spoil(checkpoint: Path) -> None:
    """Leave two bits of each number in the MLPs: the model is worse, and an engine of it is not."""
    for file in checkpoint.glob("*.safetensors"):
        tensors = load_file(file)
        for name, values in tensors.items():
            if "mlp" in name and name.endswith(".values"):
                tensors[name] = values & torch.tensor(0xCC, dtype=torch.uint8)
        save_file(tensors, file)


def document_of(capsys: Capture, *words: object) -> tuple[int, dict[str, Any], str]:
    code, out, err = run(capsys, "parity", *words, "--json")
    return code, json.loads(out), err


def test_both_questions_are_answered(quantised: Path, capsys: Capture) -> None:
    code, found, _ = document_of(capsys, quantised / "bundle", *OPTIONS)
    assert code == 0
    assert found["answers_alike"]
    cost = found["cost"]
    assert cost["measured"]
    assert cost["recipe"] == "int4-weights"
    assert cost["unquantised"] == {"folder": str(quantised / "source"), "checked": True}
    assert set(cost["by_kind"]) == {kind.value for kind in Kind}
    assert cost["all"]["items"] == found["items"] == 72
    assert cost["all"]["accuracy"]["quantised"] == found["accuracy"]["pytorch"]
    assert cost["all"]["accuracy"]["engine"] == found["accuracy"]["engine"]
    assert 0 < cost["first_token_kl"] < 0.1
    assert cost["text"]["measured"] is False


def test_the_unquantised_side_is_the_unquantised_checkpoint(quantised: Path) -> None:
    """Against a bundle of that checkpoint itself."""
    plain = build(quantised / "source", quantised / "plain")
    alone = tc_export.check_answers(plain, items_each=1, native=False, threads=1)
    found = tc_export.check_answers(quantised / "bundle", items_each=1, native=False, threads=1)
    assert alone.cost is None
    assert isinstance(found.cost, Cost)
    assert [x.unquantised for x in found.cost.changes] == [x.pytorch for x in alone.pairs]
    for change, pair in zip(found.cost.changes, alone.pairs, strict=True):
        assert change.unquantised_margin >= pair.pytorch_margin - 1e-5  # that of all tokens
        assert change.kl > 0


def test_a_cost_fails_though_the_engine_is_right(
    quantised: Path, tmp_path: Path, capsys: Capture
) -> None:
    worse = Path(shutil.copytree(quantised / "int4", tmp_path / "worse"))
    spoil(worse)
    bundle = build(worse, tmp_path / "bundle")
    code, found, err = document_of(capsys, bundle, *OPTIONS)
    assert code == 1
    assert found["answers_alike"]
    assert not found["cost"]["passed"]
    assert "quantising cost more than it may" in err
    failed = [kind for kind, of in found["cost"]["by_kind"].items() if of["verdict"] == "worse"]
    assert failed
    for kind in failed:
        assert f"{kind}: quantising cost " in err
    # Whoever allows everything gets it.
    assert run(capsys, "parity", bundle, *OPTIONS, "--most-lost", 100)[0] == 0
    result = tc_export.check_answers(bundle, items_each=1, most_lost=1.0, native=False, threads=1)
    assert result.passed


def test_few_items_fail_where_proof_is_demanded(quantised: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "parity", quantised / "bundle", *OPTIONS, "--strict")
    assert code == 1
    assert "undecided" in out
    assert "not shown to have lost at most 2 points" in err


def test_a_source_that_is_gone_is_said_and_not_skipped(
    quantised: Path, tmp_path: Path, capsys: Capture
) -> None:
    source = Path(shutil.copytree(DEMO_CHECKPOINT, tmp_path / "source"))
    recipe = load_recipe("int8-weights")
    rounded = recipe.model_copy(update={"method": "round"})
    quantize_checkpoint(open_checkpoint(source), rounded, tmp_path / "int8")
    bundle = build(tmp_path / "int8", tmp_path / "bundle")
    moved = source.rename(tmp_path / "moved")
    options = ("--tasks", "--items", 1, "--no-native", "--threads", 1)
    code, found, err = document_of(capsys, bundle, *options)
    assert code == 0
    assert found["cost"] == {"measured": False, "reason": found["cost"]["reason"]}
    assert f"no longer at {source}" in found["cost"]["reason"]
    assert "What quantising cost was not measured" in err
    code, out, _ = run(capsys, "parity", bundle, *options)
    assert code == 0
    assert "not measured" in out
    code, found, _ = document_of(capsys, bundle, *options, "--unquantised", moved)
    assert code == 0
    assert found["cost"]["measured"]
    result = tc_export.check_answers(bundle, items_each=1, native=False, threads=1)
    assert isinstance(result.cost, NotMeasured)
    code, _, err = run(capsys, "parity", bundle, *options, "--unquantised", tmp_path / "int8")
    assert code == 3
    assert "is quantised itself" in err


def test_options_are_refused_where_they_say_nothing(
    quantised: Path, bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    code, _, err = run(capsys, "parity", quantised / "bundle", "--most-lost", 1)
    assert code == 2
    assert "--most-lost applies only with --tasks" in err
    code, _, err = run(capsys, "parity", bundle, "--tasks", "--strict", "--most-lost", 1)
    assert code == 2
    assert "--most-lost, --strict apply where weights are quantised" in err
    gone = ("--tasks", "--unquantised", tmp_path / "gone")
    code, _, err = run(capsys, "parity", quantised / "bundle", *gone)
    assert code == 3
    assert "does not exist" in err


def test_the_report_has_both(quantised: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "report"
    code, found, _ = document_of(
        capsys, quantised / "bundle", *OPTIONS, "--report", folder, "--most-lost", 5
    )
    assert code == 0
    stored = json.loads((folder / "report.json").read_text())
    assert stored["tasks"] == found["tasks"]
    assert stored["tasks"]["cost"]["most_lost"] == 0.05
    assert "--most-lost 5" in stored["repeat"]
    page = (folder / "report.html").read_text()
    assert "What quantising cost" in page
    assert "5 points worse?" in page
    assert "Quantising cost no kind of question too much" in page
