# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that the libraries wrote: their own dequantised weights, number for number."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tc_export.checkpoint.describe import describe_checkpoint
from tc_export.checkpoint.foreign import PackedWeight
from tc_export.checkpoint.hf_config import read_config
from tc_export.checkpoint.quantized import QuantizedWeight
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.dtypes import DType
from tc_export.quantize.checkpoint import quantize_checkpoint, recipe_for
from tests.checkpoint.families import edit_config
from tests.checkpoint.foreign.written import FILES


@dataclass(frozen=True)
class Written:
    """What one of them becomes.

    `group_size` is None where an output channel has one scale. `inputs`: what enters is rounded
    too. `calibrates`: by scales that the library has not stored. `note`: a part of what is said.
    `matrices`: how many of the seven the library has packed.
    """

    dtype: DType
    group_size: int | None
    inputs: bool = False
    calibrates: bool = False
    note: str = ""
    matrices: int = 7


WRITTEN = {
    "compressed-tensors-fp8": Written(DType.FP8, None, inputs=True),
    "compressed-tensors-fp8-channel": Written(DType.FP8, None, inputs=True),
    "compressed-tensors-fp8-dynamic": Written(
        DType.FP8, None, inputs=True, calibrates=True, note="which calibration finds"
    ),
    "compressed-tensors-nvfp4": Written(
        DType.NVFP4, 16, note="rounds what enters a product to float4, as it comes; here it stays"
    ),
    "compressed-tensors-nvfp4-a16": Written(DType.NVFP4, 16, note="weights differ by less than"),
    "compressed-tensors-int8-static": Written(DType.INT8, None, inputs=True),
    "compressed-tensors-int8-dynamic": Written(DType.INT8, 32, note="to int8, as it comes"),
    "compressed-tensors-int4": Written(DType.INT4, 16),
    "compressed-tensors-int4-zero-points": Written(DType.INT8, 16, note="zero points subtracted"),
    "modelopt-fp8": Written(DType.FP8, None, inputs=True),
    "modelopt-fp8-cache": Written(DType.FP8, None, inputs=True, note="rounds the cache"),
    "modelopt-fp8-channel": Written(
        DType.FP8, None, inputs=True, calibrates=True, note="which calibration finds"
    ),
    "modelopt-nvfp4": Written(
        DType.NVFP4, 16, note="rounds what enters a product to nvfp4, as it comes; here it stays"
    ),
    "modelopt-nvfp4-a16": Written(DType.NVFP4, 16),
    "awq": Written(DType.INT8, 16, matrices=5, note="zero points subtracted"),
    "gptq-int4": Written(DType.INT4, 16, matrices=5),
    "gptq-int4-zero-points": Written(DType.INT8, 16, matrices=5, note="zero points subtracted"),
    "gptq-int8": Written(DType.INT8, 32, matrices=5),
}
INVERTED = 3 * 2.0**-24
"""What a weight may be off, relatively, where a divisor is inverted: three roundings to float32."""


def packed_in(checkpoint: Checkpoint) -> dict[str, PackedWeight]:
    """By the names that the weights had on the disk before."""
    return {x.name: x for x in checkpoint.tensors.values() if isinstance(x, PackedWeight)}


def check_equal(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype == np.float32
    if name.startswith("compressed-tensors-nvfp4"):
        np.testing.assert_allclose(found, expected, rtol=INVERTED, atol=0)
    else:
        np.testing.assert_array_equal(found, expected)


def test_all_that_was_written_is_expected() -> None:
    assert {folder.name for folder in FILES.iterdir() if folder.is_dir()} == WRITTEN.keys()


@pytest.mark.parametrize("name", WRITTEN)
def test_weights_are_what_the_library_makes_of_them(name: str) -> None:
    checkpoint = open_checkpoint(FILES / name)
    found = packed_in(checkpoint)
    with np.load(FILES / name / "dequantised.npz") as expected:
        assert len(found) == WRITTEN[name].matrices
        assert found.keys() == set(expected)
        for weight, packed in found.items():
            check_equal(name, packed.as_tensor().numpy(), expected[weight])


@pytest.mark.parametrize("name", [x for x in WRITTEN if not WRITTEN[x].calibrates])
def test_they_are_stored_so_and_read_again(name: str, tmp_path: Path) -> None:
    written = WRITTEN[name]
    checkpoint = open_checkpoint(FILES / name)
    library = load_file(FILES / name / "model.safetensors")
    quantize_checkpoint(checkpoint, recipe_for(checkpoint, None), tmp_path / "new")
    new = open_checkpoint(tmp_path / "new")
    new.check_values()
    with np.load(FILES / name / "dequantised.npz") as expected:
        for ours, weight in new.tensors.items():
            if not isinstance(checkpoint.tensors[ours], PackedWeight):
                assert torch.equal(weight.as_tensor(), checkpoint.tensors[ours].as_tensor())
                continue
            assert isinstance(weight, QuantizedWeight)
            assert weight.dtype is written.dtype
            assert weight.group_size == (written.group_size or weight.shape[1])
            check_equal(name, weight.as_tensor().numpy(), expected[weight.name])
            assert (weight.input_scale is not None) == written.inputs
            if weight.input_scale is not None:
                layer = weight.name.removesuffix(".weight")
                stored = library[f"{layer}.input_scale"]
                assert torch.equal(weight.input_scale.as_tensor(), stored.reshape(1))
                assert weight.input_scale.dtype is DType.from_torch(stored.dtype)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_becomes_of_it_is_said_before(name: str) -> None:
    """A plan, which reads config.json alone, takes the same recipe as a build, for all matrices."""
    written = WRITTEN[name]
    checkpoint = open_checkpoint(FILES / name)
    config = read_config(FILES / name)
    if written.matrices == 7:
        assert config.recipe == recipe_for(checkpoint, None)
    assert config.recipe is not None
    (rule,) = config.recipe.weights
    assert rule.dtype is written.dtype
    assert rule.group_size == written.group_size
    assert (rule.inputs is not None) == written.inputs
    assert config.packing is not None
    assert config.packing.calibrates == written.calibrates
    assert written.note in config.packing.account
    facts = describe_checkpoint(checkpoint)["quantised"]
    assert str(written.dtype) in facts["becomes"]
    entering = facts["tensors"].get("input_scale")
    stored = written.inputs and not written.calibrates
    assert (entering is not None and entering["used"]) == stored


@pytest.mark.parametrize("name", [x for x in WRITTEN if x.startswith("modelopt")])
def test_the_file_beside_says_the_same_as_config_json(name: str, tmp_path: Path) -> None:
    """ModelOpt says it twice, and older versions only in the file beside config.json."""
    shutil.copytree(FILES / name, tmp_path / "older")
    edit_config(tmp_path / "older", lambda x: x.pop("quantization_config"))
    older, newer = open_checkpoint(tmp_path / "older"), open_checkpoint(FILES / name)
    assert older.config.recipe == newer.config.recipe
    assert older.config.packing is not None
    assert newer.config.packing is not None
    assert older.config.packing.account == newer.config.packing.account
    assert packed_in(older).keys() == packed_in(newer).keys()


def test_how_it_was_quantised_before_stays_in_the_new_one(tmp_path: Path) -> None:
    shutil.copytree(FILES / "modelopt-fp8", tmp_path / "older")
    edit_config(tmp_path / "older", lambda x: x.pop("quantization_config"))
    newer = json.loads((FILES / "modelopt-fp8" / "config.json").read_text())["quantization_config"]
    beside = json.loads((tmp_path / "older" / "hf_quant_config.json").read_text())
    for folder, stated in ((FILES / "modelopt-fp8", newer), (tmp_path / "older", beside)):
        checkpoint = open_checkpoint(folder)
        new = tmp_path / f"new-{folder.name}"
        quantize_checkpoint(checkpoint, recipe_for(checkpoint, None), new)
        document = read_config(new).document["quantization_config"]
        assert document["repacked_from"] == stated
        assert "unquantised" not in document
        assert not (new / "hf_quant_config.json").exists()


@pytest.mark.parametrize("name", ["compressed-tensors-nvfp4", "modelopt-nvfp4"])
def test_nvfp4_by_its_definition(name: str) -> None:
    """Codes, scales of blocks and the one scale, read once more in float64 from the bytes."""
    numbers = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    parts = load_file(FILES / name / "model.safetensors")
    for disk_name, packed in packed_in(open_checkpoint(FILES / name)).items():
        layer = disk_name.removesuffix(".weight")
        codes = parts[f"{layer}.{'weight' if 'modelopt' in name else 'weight_packed'}"].numpy()
        scales = parts[f"{layer}.weight_scale"].double().numpy()
        if "modelopt" in name:
            overall = float(parts[f"{layer}.weight_scale_2"])
        else:
            overall = 1 / float(parts[f"{layer}.weight_global_scale"])
        unpacked = np.stack((codes & 15, codes >> 4), axis=-1).reshape(len(codes), -1)
        expected = numbers[unpacked] * np.repeat(scales * overall, 16, axis=1)
        np.testing.assert_allclose(packed.as_tensor().double().numpy(), expected, rtol=INVERTED)
