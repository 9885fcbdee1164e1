# SPDX-License-Identifier: Apache-2.0
"""A quantised checkpoint opens as one, holds what its bytes say, and is never half there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tc_export.checkpoint.quantized import QuantizedWeight
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError, UsageError
from tc_export.quantize import checkpoint as made_by
from tc_export.quantize.checkpoint import quantize_checkpoint
from tc_export.recipes import Recipe, load_recipe
from tests.checkpoint.families import edit_weights, save_small
from tests.repository import DEMO_CHECKPOINT

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
UP = "decoder.layers.1.mlp.up_proj.weight"


def recipe(**changes: Any) -> Recipe:
    rules = [
        {"names": ["decoder.layers.*.mlp.*_proj.weight"], "format": "int4", "group_size": 32},
        {"names": ["decoder.layers.*.self_attn.?_proj.weight"], "format": "int8", "group_size": 16},
    ]
    values = {"name": "mixed", "description": "", "weights": rules, "keep": ["*.layers.0.*"]}
    return Recipe.read(values | changes, where="a test")


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(save_small(tmp_path / "source", text=TEXT, dtype=torch.float16))


def dequantised_by_hand(folder: Path, name: str) -> np.ndarray:
    """The weight [N, K] in float64, from bytes and scales, number by number."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(folder / index[f"{name}.values"], "np") as file:
        stored = file.get_tensor(f"{name}.values")
        scales = file.get_tensor(f"{name}.scales").astype(np.float64)
    K = len(stored)
    if stored.dtype == np.uint8:
        halves = [[byte & 15, byte >> 4] for byte in stored.flatten().tolist()]
        flat = [x - 16 if x > 7 else x for pair in halves for x in pair]
        numbers = np.array(flat, np.float64).reshape(K, -1)
    else:
        numbers = stored.astype(np.float64)
    found: np.ndarray = (numbers * np.repeat(scales, K // len(scales), axis=0)).T
    return found


def test_the_new_folder_is_a_checkpoint(source: Checkpoint, tmp_path: Path) -> None:
    made = quantize_checkpoint(source, recipe(), tmp_path / "new")
    found = open_checkpoint(made.folder)
    assert made.weights == 2 * 7
    assert made.bytes_after < made.bytes_before
    found.check_values()
    assert found.tensors.keys() == source.tensors.keys()
    kinds = {name: type(x) for name, x in found.tensors.items()}
    assert sum(kind is QuantizedWeight for kind in kinds.values()) == 14
    for name, weight in found.tensors.items():
        before = source.tensors[name]
        assert isinstance(before, TensorLocation)
        assert weight.shape == before.shape
        values, expected = weight.as_tensor().double().numpy(), before.as_tensor().double().numpy()
        if isinstance(weight, TensorLocation):
            np.testing.assert_array_equal(values, expected)
            continue
        np.testing.assert_array_equal(values, dequantised_by_hand(made.folder, before.name))
        steps = 7 if weight.dtype is DType.INT4 else 127
        assert abs(values - expected).max() < 0.51 * abs(expected).max() / steps * 1.01
    assert found.digest() != source.digest()


def test_scales_may_be_rounded_to_the_graphs_format(source: Checkpoint, tmp_path: Path) -> None:
    found = open_checkpoint(quantize_checkpoint(source, recipe(), tmp_path / "new").folder)
    weight = found.tensors[UP]
    assert isinstance(weight, QuantizedWeight)
    assert torch.equal(weight.as_tensor(), weight.as_tensor(DType.FLOAT16))
    rounded = weight.as_tensor(DType.BFLOAT16)
    factors = weight.scales.as_tensor().to(torch.bfloat16).float()
    assert not torch.equal(rounded, weight.as_tensor())
    numbers = weight.as_tensor().T.reshape(-1, 32, 96) / weight.scales.as_tensor().float()[:, None]
    expected = (numbers.round() * factors[:, None]).reshape(64, 96).T
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0)


def test_a_second_run_finds_it_done(source: Checkpoint, tmp_path: Path) -> None:
    first = quantize_checkpoint(source, recipe(), tmp_path / "new")
    times = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert quantize_checkpoint(source, recipe(), tmp_path / "new") == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == times
    with pytest.raises(UsageError, match="exists, and is not this checkpoint"):
        quantize_checkpoint(source, recipe(keep=[]), tmp_path / "new")


def test_a_killed_run_goes_on_at_its_layer(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = quantize_checkpoint(source, recipe(), tmp_path / "expected").folder
    written: list[Path] = []

    def dying(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file(tensors, path)
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(made_by, "save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, recipe(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    done: list[int] = []
    made = quantize_checkpoint(source, recipe(), tmp_path / "new", lambda n, total: done.append(n))
    assert len(written) == 3 + 2  # two of four files were whole
    assert done == sorted(done)
    assert not list(tmp_path.glob(".new*"))
    for path in expected.iterdir():
        assert (made.folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_rest_of_other_work_is_not_gone_on_with(
    source: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(tensors: dict[str, torch.Tensor], path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(made_by, "save_file", dying)
        with pytest.raises(KeyboardInterrupt):
            quantize_checkpoint(source, recipe(), tmp_path / "new")
    stale = tmp_path / ".new.quantizing" / "model-00002-of-00004.safetensors"
    stale.write_bytes(b"of another recipe")
    made = quantize_checkpoint(source, recipe(keep=[]), tmp_path / "new")
    open_checkpoint(made.folder).check_values()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"keep": ["decoder.layers.9.*"]}, "fits no weight"),
        (
            {"weights": [{"names": ["*.up_proj.weight"], "format": "int4", "group_size": 128}]},
            "64 channels are no multiple of groups of 128; 16, 32, 64 do",
        ),
        (
            {"weights": [{"names": ["*layernorm.weight"], "format": "int4", "group_size": 16}]},
            "is no matrix of a linear layer",
        ),
        (
            {"weights": [{"names": ["*lm_head.weight"], "format": "int4", "group_size": 16}]},
            "the head stays as it is",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_any_work(
    source: Checkpoint, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        quantize_checkpoint(source, recipe(**{"keep": []} | changes), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(("value", "expected"), [(float("nan"), "NaN"), (60000.0, None)])
def test_a_weight_that_no_number_holds(tmp_path: Path, value: float, expected: str | None) -> None:
    folder = save_small(tmp_path / "source", text=TEXT, dtype=torch.float16)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        (name,) = (x for x in tensors if x.endswith("layers.1.mlp.up_proj.weight"))
        tensors[name][3, 5] = value

    edit_weights(folder, spoil)
    source = open_checkpoint(folder)
    if expected is None:
        weight = open_checkpoint(
            quantize_checkpoint(source, recipe(), tmp_path / "new").folder
        ).tensors[UP]
        assert float(weight.as_tensor()[3, 5]) == pytest.approx(value, rel=1e-3)
    else:
        with pytest.raises(CheckpointError, match=expected):
            quantize_checkpoint(source, recipe(), tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_quantised_twice_is_refused(source: Checkpoint, tmp_path: Path) -> None:
    made = quantize_checkpoint(source, recipe(), tmp_path / "new")
    with pytest.raises(CheckpointError, match="is quantised already"):
        quantize_checkpoint(open_checkpoint(made.folder), recipe(), tmp_path / "newer")


def spoiled(folder: Path, name: str, edit: Any) -> None:
    """Change the tensors of the shard that has a tensor."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    file = folder / index["weight_map"][name]
    tensors = {key: x.clone() for key, x in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file)
    index["weight_map"] = {
        key: shard for key, shard in index["weight_map"].items() if shard != file.name
    } | dict.fromkeys(tensors, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("no scales", "values without scales"),
        ("no values", "scales without values"),
        ("wrong groups", "do not divide values"),
        ("wrong columns", "do not divide values"),
        ("whole scales", "scales are int32"),
        ("float values", "values are float32"),
    ],
)
def test_a_file_that_lies_is_refused(
    source: Checkpoint, tmp_path: Path, what: str, expected: str
) -> None:
    folder = quantize_checkpoint(source, recipe(), tmp_path / "new").folder
    name = str(source.tensors[UP].name)
    values, scales = f"{name}.values", f"{name}.scales"

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        match what:
            case "no scales":
                del tensors[scales]
            case "no values":
                del tensors[values]
            case "wrong groups":
                tensors[scales] = tensors[scales].repeat(5, 1)[:7].contiguous()
            case "wrong columns":
                tensors[scales] = tensors[scales][:, :-2].contiguous()
            case "whole scales":
                tensors[scales] = tensors[scales].to(torch.int32)
            case "float values":
                tensors[values] = tensors[values].to(torch.float32)

    spoiled(folder, values, edit)
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_not_above_zero_are_refused(
    source: Checkpoint, tmp_path: Path, value: float
) -> None:
    folder = quantize_checkpoint(source, recipe(), tmp_path / "new").folder
    scales = f"{source.tensors[UP].name}.scales"

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[scales][1, 2] = value

    spoiled(folder, scales, edit)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight\.scales: 1 of 192 values"):
        open_checkpoint(folder).check_values()


@pytest.fixture(scope="module")
def in_fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    few = {"clips": 1, "passages": 1}
    asked = Recipe(**load_recipe("fp8").model_dump() | few)
    folder = tmp_path_factory.mktemp("fp8") / "new"
    return quantize_checkpoint(open_checkpoint(DEMO_CHECKPOINT), asked, folder).folder


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("two scales", r"the scale of the inputs is float32 .2,., expected one"),
        ("whole scale", "the scale of the inputs is int32"),
        ("groups", "inputs are rounded, but an output channel has several scales"),
        ("no values", "scales without values"),
        ("no scale", "values are fp8, and the scale of the inputs is missing"),
        ("zero", r"up_proj\.weight\.input_scale: 1 of 1 values"),
        ("NaN", r"up_proj\.weight\.values: 1 of \d+ values"),
    ],
)
def test_a_scale_of_inputs_that_lies_is_refused(
    in_fp8: Path, tmp_path: Path, what: str, expected: str
) -> None:
    folder = tmp_path / "new"
    shutil.copytree(in_fp8, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    (scale,) = (x for x in index if x.endswith("layers.1.mlp.up_proj.weight.input_scale"))
    name = scale.removesuffix(".input_scale")

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        match what:
            case "two scales":
                tensors[scale] = torch.ones(2)
            case "whole scale":
                tensors[scale] = torch.ones(1, dtype=torch.int32)
            case "groups":
                tensors[f"{name}.scales"] = tensors[f"{name}.scales"].repeat(2, 1)
            case "no values":
                del tensors[f"{name}.values"]
            case "no scale":
                del tensors[scale]
            case "zero":
                tensors[scale][0] = 0
            case "NaN":
                tensors[f"{name}.values"].view(torch.uint8)[2, 3] = 0x7F

    spoiled(folder, scale, edit)
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(folder).check_values()
