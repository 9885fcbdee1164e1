# SPDX-License-Identifier: Apache-2.0
"""Every layout is read number by number, and becomes our stored form without a rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tc_export.checkpoint.foreign import PackedWeight
from tc_export.checkpoint.foreign.unpacked import unpack_words
from tc_export.checkpoint.hf_config import read_config
from tc_export.checkpoint.quantized import QuantizedWeight
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.quantize.checkpoint import quantize_checkpoint, recipe_for
from tests.checkpoint.families import rename_weights, save_small
from tests.checkpoint.foreign.folders import packed
from tests.checkpoint.foreign.packers import SCHEMES, Matrix, Parts, words

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
PROJECTIONS = 2 * 7


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float") / "source"
    return save_small(folder, text=TEXT, dtype=torch.float16)


def by_disk_name(checkpoint: Checkpoint) -> dict[str, PackedWeight]:
    return {x.name: x for x in checkpoint.tensors.values() if isinstance(x, PackedWeight)}


@pytest.mark.parametrize("name", SCHEMES)
def test_each_number_is_kept(name: str, source: Path, tmp_path: Path) -> None:
    scheme = SCHEMES[name]
    made = packed(source, tmp_path / "packed", scheme)
    checkpoint = open_checkpoint(tmp_path / "packed")
    found = by_disk_name(checkpoint)
    assert found.keys() == made.keys()
    assert len(found) == PROJECTIONS
    for key, matrix in made.items():
        np.testing.assert_array_equal(found[key].as_tensor().double().numpy(), matrix.weight)

    new = quantize_checkpoint(checkpoint, recipe_for(checkpoint, None), tmp_path / "new")
    assert new.weights == PROJECTIONS
    repacked = open_checkpoint(tmp_path / "new")
    repacked.check_values()
    before = open_checkpoint(source)
    for ours, weight in repacked.tensors.items():
        was = checkpoint.tensors[ours]
        if isinstance(was, PackedWeight):
            assert isinstance(weight, QuantizedWeight)
            expected = made[was.name].weight
            narrow = scheme.bits == 4 and scheme.symmetric
            assert weight.dtype is (DType.INT4 if narrow else DType.INT8)
            assert weight.group_size == 32
            assert weight.scales.dtype is DType.FLOAT16
        else:
            expected = before.tensors[ours].as_tensor().double().numpy()
        np.testing.assert_array_equal(weight.as_tensor().double().numpy(), expected)


@pytest.mark.parametrize("name", ["awq", "gptq int4", "compressed int4"])
def test_older_names_are_read_too(name: str, source: Path, tmp_path: Path) -> None:
    made = packed(source, tmp_path / "packed", SCHEMES[name])
    prefixes = {
        "model.language_model": "language_model.model",
        "language_model.model": "model.language_model",
        "": "",
    }
    rename_weights(tmp_path / "packed", prefixes)
    assert len(by_disk_name(open_checkpoint(tmp_path / "packed"))) == len(made)


def test_layers_that_are_not_quantised_stay(source: Path, tmp_path: Path) -> None:
    """Which they are is seen from the tensors, and the new folder says it."""

    def chosen(name: str) -> bool:
        return "language_model" in name and ".layers.1.mlp" in name

    made = packed(source, tmp_path / "packed", SCHEMES["awq"], chosen)
    checkpoint = open_checkpoint(tmp_path / "packed")
    assert by_disk_name(checkpoint).keys() == made.keys()
    recipe = recipe_for(checkpoint, None)
    assert set(recipe.weights[0].names) == {
        f"decoder.layers.1.mlp.{x}_proj.weight" for x in ("gate", "up", "down")
    }
    quantize_checkpoint(checkpoint, recipe, tmp_path / "new")
    kept = open_checkpoint(tmp_path / "new").tensors["decoder.layers.0.mlp.up_proj.weight"]
    assert isinstance(kept, TensorLocation)


def test_the_vision_tower_may_be_quantised_too(source: Path, tmp_path: Path) -> None:
    def chosen(name: str) -> bool:
        return ("language_model" in name and "_proj." in name) or "self_attn" in name

    scheme = SCHEMES["compressed int8"]
    made = packed(source, tmp_path / "packed", scheme, chosen)
    checkpoint = open_checkpoint(tmp_path / "packed")
    recipe = recipe_for(checkpoint, None)
    assert "vision.vision_tower.layers.*.self_attn.q_proj.weight" in recipe.weights[0].names
    quantize_checkpoint(checkpoint, recipe, tmp_path / "new")
    name = "vision.vision_tower.layers.0.self_attn.q_proj.weight"
    weight = open_checkpoint(tmp_path / "new").tensors[name]
    expected = made[checkpoint.tensors[name].name].weight
    np.testing.assert_array_equal(weight.as_tensor().double().numpy(), expected)


@pytest.mark.parametrize("scales", [ml_dtypes.bfloat16, np.float32])
def test_scales_keep_their_format(source: Path, tmp_path: Path, scales: type) -> None:
    made = packed(source, tmp_path / "packed", SCHEMES["compressed int4"], scales=scales)
    checkpoint = open_checkpoint(tmp_path / "packed")
    quantize_checkpoint(checkpoint, recipe_for(checkpoint, None), tmp_path / "new")
    for weight in open_checkpoint(tmp_path / "new").tensors.values():
        if isinstance(weight, QuantizedWeight):
            assert weight.scales.dtype is DType.from_numpy(np.dtype(scales))
            stored = made[weight.name].scales.T
            np.testing.assert_array_equal(weight.scales.as_array(), stored)


def test_a_plan_takes_what_the_checkpoint_becomes(source: Path, tmp_path: Path) -> None:
    for name, expected in (("awq", "int8"), ("gptq int4", "int4")):
        packed(source, tmp_path / name, SCHEMES[name])
        config = read_config(tmp_path / name)
        assert config.recipe == recipe_for(open_checkpoint(tmp_path / name), None)
        assert config.recipe is not None
        assert {rule.format for rule in config.recipe.weights} == {expected}


def test_zero_of_a_zero_point_borrows_from_its_neighbour(source: Path, tmp_path: Path) -> None:
    """Version 1 takes 1 off whole words: a zero point of 0 is 15 there, and the next one less."""
    scheme = SCHEMES["gptq int4, zero points"]
    expected: list[np.ndarray] = []

    def pack(matrix: Matrix) -> Parts:
        zeros = np.where(np.arange(len(matrix.zeros)) % 2, 5, 0)[:, None] + 0 * matrix.zeros
        changed = replace(matrix, zeros=zeros)
        expected.append(changed.weight)
        parts = scheme.pack(changed)
        assert (parts["qzeros"].view(np.uint32) & 0xFF == 0x3F).all()
        return parts

    made = packed(source, tmp_path / "packed", replace(scheme, pack=pack))
    found = by_disk_name(open_checkpoint(tmp_path / "packed"))
    for name, weight in zip(made, expected, strict=True):
        np.testing.assert_array_equal(found[name].as_tensor().double().numpy(), weight)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), bits=st.sampled_from([4, 8]), axis=st.sampled_from([0, 1]))
def test_words_are_unpacked_along_either_axis(data: st.DataObject, bits: int, axis: int) -> None:
    rows, columns = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    shape = (rows * 32 // bits, columns) if axis == 0 else (rows, columns * 32 // bits)
    numbers = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    stored = words(numbers.T, bits).T if axis == 0 else words(numbers, bits)
    found = unpack_words(torch.from_numpy(np.ascontiguousarray(stored)), bits, axis)
    np.testing.assert_array_equal(found.numpy(), numbers)
