# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that another library quantised builds, plans and shows itself as it is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tc_export
from tc_export.checkpoint.quantized import QuantizedWeight
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.quantize.calibration import Calibration
from tc_export.quantize.checkpoint import quantize_checkpoint, recipe_for
from tests.checkpoint.foreign.folders import is_projection, packed, write
from tests.checkpoint.foreign.packers import FP8, SCHEMES, fp8
from tests.cli.running import run
from tests.repository import DEMO_CHECKPOINT

Capture = pytest.CaptureFixture[str]
PROJECTIONS = 4 * 7


@pytest.fixture(scope="module", params=["awq", "gptq int4"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def foreign(scheme: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model as a library would quantise it."""
    folder = tmp_path_factory.mktemp("foreign") / "demo"
    packed(DEMO_CHECKPOINT, folder, SCHEMES[scheme])
    return folder


def test_it_builds_and_computes_what_it_says(scheme: str, foreign: Path, tmp_path: Path) -> None:
    manifest = tc_export.build(foreign, output=tmp_path / "bundle", max_frames=2, max_length=160)
    assert manifest.engine is not None
    assert tc_export.check_parity(tmp_path / "bundle").passed
    kept = "int8" if scheme == "awq" else "int4"
    folder = tmp_path / f"demo-{scheme.split()[0]}-{kept}"
    library, ours = open_checkpoint(foreign).tensors, open_checkpoint(folder).tensors
    assert library.keys() == ours.keys()
    for name, weight in ours.items():
        np.testing.assert_array_equal(weight.as_tensor().numpy(), library[name].as_tensor().numpy())
    document = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert document["repacked_from"] == SCHEMES[scheme].config


@pytest.fixture(scope="module")
def in_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model in fp8, as a library leaves it that rounds inputs as they come."""
    return write(
        DEMO_CHECKPOINT,
        tmp_path_factory.mktemp("fp8") / "demo",
        {"quantization_config": FP8},
        lambda name, weight: fp8(weight) if is_projection(name) else None,
    )


def test_scales_that_the_library_has_not_stored_are_found(in_fp8: Path, tmp_path: Path) -> None:
    """Each is of what enters there, and of no more than its largest number."""
    checkpoint = open_checkpoint(in_fp8)
    recipe = recipe_for(checkpoint, None)
    quantize_checkpoint(checkpoint, recipe, tmp_path / "new")
    new = open_checkpoint(tmp_path / "new")
    calibration = Calibration(checkpoint, recipe.clips, recipe.passages)
    for layer in range(checkpoint.config.model.text.num_hidden_layers):
        for module, x_TK in calibration.inputs(layer).items():
            name = f"decoder.layers.{layer}.{module}.weight"
            weight = new.tensors[name]
            assert isinstance(weight, QuantizedWeight)
            assert torch.equal(weight.as_tensor(), checkpoint.tensors[name].as_tensor())
            assert weight.input_scale is not None
            share = float(weight.input_scale.as_tensor()) * 448 / float(x_TK.abs().max())
            assert 0.39 < share <= 1.0001


def test_a_killed_run_finds_the_same_scales(in_fp8: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(in_fp8)
    recipe = recipe_for(checkpoint, None)
    whole = quantize_checkpoint(checkpoint, recipe, tmp_path / "whole").folder

    files = itertools.count(1)

    def stop(done: int, total: int) -> None:
        if next(files) == 3:  # what is outside of layers, and two of them
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(checkpoint, recipe, tmp_path / "new", stop)
    new = quantize_checkpoint(checkpoint, recipe, tmp_path / "new").folder
    for path in whole.iterdir():
        assert (new / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_it_builds_for_a_device_that_multiplies_in_fp8(in_fp8: Path, tmp_path: Path) -> None:
    """The build compares its graphs with the repacked model, and fails otherwise."""
    bundle = tmp_path / "bundle"
    tc_export.build(
        in_fp8, output=bundle, target="h100", precision="fp16", max_frames=2, max_length=160
    )
    assert json.loads((bundle / "parity" / "report.json").read_text())["passed"]


def test_a_second_run_finds_it_done(foreign: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(foreign)
    recipe = recipe_for(checkpoint, None)
    first = quantize_checkpoint(checkpoint, recipe, tmp_path / "new")
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert quantize_checkpoint(checkpoint, recipe, tmp_path / "new") == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == times


def test_the_command_repacks_and_says_so(
    scheme: str, foreign: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["--checkpoint", foreign, "--output", tmp_path / "new"]
    code, out, err = run(capsys, "quantize", *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["weights"] == PROJECTIONS
    assert ("zero points subtracted" in found["repacked"]) == (scheme == "awq")
    assert run(capsys, "quantize", *words)[0] == 0
    place = ["--target", "orin", "--frames", "4", "--json"]
    _, of_new, _ = run(capsys, "plan", "--checkpoint", tmp_path / "new", *place)
    _, of_old, _ = run(capsys, "plan", "--checkpoint", foreign, *place)
    assert json.loads(of_old)["bytes"] == json.loads(of_new)["bytes"]
    assert json.loads(of_old)["recipe"] == json.loads(of_new)["recipe"]


def test_it_is_not_quantised_again(foreign: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--checkpoint", foreign, "--output", tmp_path / "new"]
    code, _, err = run(capsys, "quantize", *words, "--recipe", "int4-weights")
    assert code == 2
    assert "is quantised already" in err
    assert "repacked as it is" in err
    for verb in (["plan", "--checkpoint", foreign], ["build", *words, "--target", "cpu"]):
        code, _, err = run(capsys, *verb, "--quantize", "int4-weights")
        assert code == 2
        assert "is quantised already" in err
    assert not list(tmp_path.iterdir())


def test_what_needs_a_recipe_says_so(tmp_path: Path, capsys: Capture) -> None:
    words = ["--checkpoint", DEMO_CHECKPOINT, "--output", tmp_path / "new"]
    code, _, err = run(capsys, "quantize", *words)
    assert code == 2
    assert "no recipe is named" in err
    assert "int4-weights" in err


def test_zero_points_are_refused_where_eight_bits_are(
    scheme: str, foreign: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["plan", "--checkpoint", foreign, "--target", "rtx4090"]
    code, _, err = run(capsys, *words)
    assert code == (2 if scheme == "awq" else 0)
    if scheme == "awq":
        assert "widens int8 weights" in err
        assert "before it was quantised" in err


def test_inspect_shows_its_tensors(scheme: str, foreign: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "inspect", foreign, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["quantised"]["by"] == scheme.split()[0].upper()
    assert found["quantised"]["tensors"]["qweight"]["count"] == PROJECTIONS
    sizes = found["weights"]
    (form,) = (x for x in sizes if "a scale for 32 channels" in x)
    assert sizes[form]["count"] == PROJECTIONS
    code, out, _ = run(capsys, "inspect", foreign)
    assert code == 0
    assert "qzeros" in out
    assert run(capsys, "inspect", DEMO_CHECKPOINT, "--json")[0] == 0
