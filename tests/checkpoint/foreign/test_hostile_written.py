# SPDX-License-Identifier: Apache-2.0
"""Files in fp8 and NVFP4 that libraries wrote, with a lie put in: each is refused, and why."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tc_export.checkpoint.foreign import find_packing
from tc_export.checkpoint.hf_config import read_config
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.config import ModelConfig
from tc_export.errors import CheckpointError
from tc_export.quantize.checkpoint import quantize_checkpoint, recipe_for
from tests.checkpoint.families import edit_config, edit_weights
from tests.checkpoint.foreign.written import FILES

LAYER = "layers.0.mlp.up_proj"  # [96, 32]

Tensors = dict[str, torch.Tensor]
Change = Callable[[torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Lie:
    """A folder, what is changed of one layer's tensors in it, and what is said."""

    folder: str
    part: str
    change: Change
    expected: str


def filled(value: float) -> Change:
    return lambda tensor: torch.full_like(tensor.float(), value).to(tensor.dtype)


def at(place: tuple[int, ...], value: float) -> Change:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        wide = tensor.float()
        wide[place] = value
        return wide.to(tensor.dtype)

    return change


NAN, INFINITE = float("nan"), float("inf")
DYNAMIC, CHANNEL = "compressed-tensors-fp8-dynamic", "compressed-tensors-fp8-channel"
CALIBRATED = {DYNAMIC, "modelopt-fp8-channel"}
"""Repacking them needs a tokenizer, and these folders have none."""

LIES = {
    "no scale of inputs": Lie(
        "modelopt-fp8", "input_scale", lambda x: None, "input_scale is missing"
    ),
    "no scale of inputs in int8": Lie(
        "compressed-tensors-int8-static", "input_scale", lambda x: None, "input_scale is missing"
    ),
    "several scales of inputs": Lie(
        CHANNEL,
        "input_scale",
        lambda x: x.repeat(32),
        r"input_scale has the shape \(32,\), expected one number",
    ),
    "a scale of inputs that is zero": Lie(
        "modelopt-fp8", "input_scale", filled(0), "1 of 1 scales of what enters are not above zero"
    ),
    "a scale of inputs that is NaN": Lie(
        CHANNEL, "input_scale", filled(NAN), "scales of what enters"
    ),
    "a scale of inputs below zero": Lie(
        "compressed-tensors-int8-static", "input_scale", filled(-1), "scales of what enters"
    ),
    "a scale of zero": Lie(
        "modelopt-fp8", "weight_scale", filled(0), "96 of 96 scales are not above zero"
    ),
    "a scale of NaN": Lie(DYNAMIC, "weight_scale", at((5, 0), NAN), "1 of 96 scales"),
    "a scale below zero": Lie("modelopt-fp8-channel", "weight_scale", at((5,), -1), "1 of 96"),
    "a scale without end": Lie(CHANNEL, "weight_scale", at((0, 0), INFINITE), "1 of 96 scales"),
    "scales of another axis": Lie(
        "modelopt-fp8-channel",
        "weight_scale",
        lambda x: x[:32],
        r"weight_scale has the shape \(32,\), expected one number, or 96",
    ),
    "scales of another axis in a column": Lie(
        CHANNEL,
        "weight_scale",
        lambda x: x[:32],
        r"weight_scale has the shape \(32, 1\), expected \(96, 1\)",
    ),
    "one scale for channels": Lie(
        CHANNEL, "weight_scale", lambda x: x[:1], r"\(1, 1\), expected \(96, 1\)"
    ),
    "scales for a tensor": Lie(
        "compressed-tensors-fp8",
        "weight_scale",
        lambda x: x.repeat(96)[:, None],
        "weight_scale has the shape",
    ),
    "scales of whole numbers": Lie(
        DYNAMIC, "weight_scale", lambda x: x.to(torch.int32), "weight_scale is int32"
    ),
    "a number of NaN": Lie("modelopt-fp8", "weight", at((7, 3), NAN), "some numbers are NaN"),
    "numbers of the other fp8": Lie(
        "modelopt-fp8", "weight", lambda x: x.float().to(torch.float8_e5m2), "weight is fp8_e5m2"
    ),
    "numbers in another order": Lie(
        "compressed-tensors-fp8", "weight", lambda x: x.T, r"up_proj.weight: \(32, 96\), expected"
    ),
    "a zero point": Lie(
        "compressed-tensors-fp8",
        "weight_zero_point",
        filled(1),
        "zero points are 0, and in weight_zero_point 1 of 1 are not",
    ),
    "a zero point of inputs": Lie(
        "compressed-tensors-int8-static",
        "input_zero_point",
        filled(3),
        "in input_zero_point 1 of 1 are not",
    ),
    "no global scale": Lie(
        "modelopt-nvfp4", "weight_scale_2", lambda x: None, "weight_scale_2 is missing"
    ),
    "no divisor": Lie(
        "compressed-tensors-nvfp4",
        "weight_global_scale",
        lambda x: None,
        "weight_global_scale is missing",
    ),
    "a global scale of zero": Lie(
        "modelopt-nvfp4", "weight_scale_2", filled(0), "1 of 1 global scales are not above zero"
    ),
    "a divisor of zero": Lie(
        "compressed-tensors-nvfp4", "weight_global_scale", filled(0), "global scales"
    ),
    "a divisor without end": Lie(
        "compressed-tensors-nvfp4", "weight_global_scale", filled(INFINITE), "global scales"
    ),
    "a divisor below zero": Lie(
        "compressed-tensors-nvfp4-a16", "weight_global_scale", filled(-2), "global scales"
    ),
    "a global scale that is NaN": Lie(
        "modelopt-nvfp4-a16", "weight_scale_2", filled(NAN), "global scales"
    ),
    "global scales for each row": Lie(
        "modelopt-nvfp4",
        "weight_scale_2",
        lambda x: x.repeat(96),
        r"weight_scale_2 has the shape \(96,\), expected one number",
    ),
    "a product of scales without end": Lie(
        "modelopt-nvfp4", "weight_scale_2", filled(3e38), "scales times the global one"
    ),
    "a block's scale of zero": Lie(
        "modelopt-nvfp4", "weight_scale", at((3, 1), 0), "1 of 192 scales are not above zero"
    ),
    "a block's scale of NaN": Lie(
        "compressed-tensors-nvfp4", "weight_scale", at((3, 1), NAN), "1 of 192 scales"
    ),
    "a block's scale below zero": Lie(
        "compressed-tensors-nvfp4", "weight_scale", at((3, 1), -1), "1 of 192 scales"
    ),
    "larger blocks": Lie(
        "modelopt-nvfp4",
        "weight_scale",
        lambda x: x[:, :1],
        r"weight_scale has the shape \(96, 1\), expected \(96, 2\)",
    ),
    "blocks of rows": Lie(
        "compressed-tensors-nvfp4",
        "weight_scale",
        lambda x: x.T,
        r"weight_scale has the shape \(2, 96\), expected \(96, 2\)",
    ),
    "a block that is cut off": Lie(
        "modelopt-nvfp4", "weight", lambda x: x[:, :12], "24 channels are no multiple of groups"
    ),
    "numbers of eight bits": Lie(
        "modelopt-nvfp4",
        "weight",
        lambda x: x.float().to(torch.float8_e4m3fn),
        "weight is",
    ),
    "scales in 16 bits": Lie(
        "compressed-tensors-nvfp4", "weight_scale", lambda x: x.bfloat16(), "weight_scale is bf"
    ),
}


def changed(folder: str, new: Path, part: str, change: Change) -> Path:
    """A copy of what a library wrote, with one layer's part changed, or put in."""
    shutil.copytree(FILES / folder, new)

    def edit(tensors: Tensors) -> None:
        layer = next(x.rpartition(".")[0] for x in tensors if f"{LAYER}." in x)
        found = change(tensors.pop(f"{layer}.{part}", torch.zeros(1, dtype=torch.int8)))
        if found is not None:
            tensors[f"{layer}.{part}"] = found.contiguous()

    edit_weights(new, edit)
    return new


def read(folder: Path) -> None:
    for weight in open_checkpoint(folder).tensors.values():
        weight.as_tensor()


def repack(folder: Path, new: Path) -> None:
    checkpoint = open_checkpoint(folder)
    quantize_checkpoint(checkpoint, recipe_for(checkpoint, None), new)


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    lie = LIES[name]
    folder = changed(lie.folder, tmp_path / "packed", lie.part, lie.change)
    with pytest.raises(CheckpointError, match=lie.expected) as raised:
        read(folder)
    assert LAYER in str(raised.value)
    if lie.folder not in CALIBRATED:
        with pytest.raises(CheckpointError, match=lie.expected):
            repack(folder, tmp_path / "new")
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("part", ["pre_quant_scale", "svdquant_lora_a", "weight_scale_3"])
def test_a_part_that_is_in_no_table_is_refused(part: str, tmp_path: Path) -> None:
    """What a library multiplies with, and its table here does not know, is never passed over."""
    folder = changed("modelopt-nvfp4", tmp_path / "packed", part, lambda x: torch.ones(32))
    with pytest.raises(CheckpointError, match=rf"unused: .*{LAYER}.{part}"):
        open_checkpoint(folder)


def weights(**settings: Any) -> Callable[[dict[str, Any]], object]:
    """Other settings for the weights of a compressed-tensors group."""
    return lambda x: x["config_groups"]["group_0"]["weights"].update(settings)


def entering(**settings: Any) -> Callable[[dict[str, Any]], object]:
    return lambda x: x["config_groups"]["group_0"]["input_activations"].update(settings)


def algorithm(name: str) -> Callable[[dict[str, Any]], object]:
    """Another algorithm of ModelOpt's."""
    return lambda x: x.update(quant_algo=name)


def without_inputs(quantization: dict[str, Any]) -> None:
    quantization["config_groups"]["group_0"]["input_activations"] = None


def two_kinds_of_inputs(quantization: dict[str, Any]) -> None:
    first = quantization["config_groups"]["group_0"]
    quantization["config_groups"]["group_1"] = first | {"input_activations": None}


UNREAD: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "fp8 for weights alone": (DYNAMIC, without_inputs, "multiply nothing else with fp8"),
    "inputs in whole numbers": (DYNAMIC, entering(type="int"), "multiply nothing else with fp8"),
    "inputs with a zero point": (
        CHANNEL,
        entering(symmetric=False),
        "multiply nothing else with fp8",
    ),
    "inputs by channel": (CHANNEL, entering(strategy="channel"), "multiply nothing else with fp8"),
    "inputs of two kinds": (CHANNEL, two_kinds_of_inputs, "rounded in several ways"),
    "fp8 in blocks": (
        DYNAMIC,
        weights(strategy="block", block_structure=[128, 128]),
        "strategy: .* not 'block'",
    ),
    "fp8 in groups": (
        DYNAMIC,
        weights(strategy="group", group_size=16),
        "float-quantized with weights of 8 bits, type float, strategy group",
    ),
    "fp8 with zero points": (DYNAMIC, weights(symmetric=False), "floating point with zero points"),
    "fp8 as whole numbers": (
        DYNAMIC,
        weights(type="int"),
        "float-quantized with weights of 8 bits, type int",
    ),
    "MXFP4": (
        "compressed-tensors-nvfp4",
        weights(strategy="group", group_size=32),
        "strategy group",
    ),
    "NVFP4 in larger blocks": (
        "compressed-tensors-nvfp4",
        weights(group_size=32),
        "groups of 32 in nvfp4, expected 16",
    ),
    "NVFP4 without a strategy": (
        "compressed-tensors-nvfp4",
        weights(strategy="tensor"),
        "strategy tensor with group_size 16",
    ),
    "ModelOpt's larger blocks": (
        "modelopt-nvfp4",
        lambda x: x.update(group_size=32),
        "NVFP4 with blocks of 32, expected 16",
    ),
    **{
        name: ("modelopt-nvfp4", algorithm(name), f"quant_algo: .* not '{name}'")
        for name in ("NVFP4_AWQ", "NVFP4_SVD", "W4A8_NVFP4_FP8", "MXFP8", "MIXED_PRECISION")
    },
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_setting_that_is_not_read_is_named(name: str, tmp_path: Path) -> None:
    folder, edit, expected = UNREAD[name]
    shutil.copytree(FILES / folder, tmp_path / "packed")
    edit_config(tmp_path / "packed", lambda x: edit(x["quantization_config"]))
    with pytest.raises(CheckpointError, match=expected):
        _ = read_config(tmp_path / "packed").recipe


@pytest.mark.parametrize(
    ("folder", "other", "expected"),
    [
        ("modelopt-fp8", "NVFP4", "weight is fp8|weight_scale_2 is missing"),
        ("modelopt-nvfp4", "FP8", "weight is uint8"),
        ("modelopt-fp8-channel", "FP8", "input_scale is missing"),
    ],
)
def test_another_algorithm_than_the_files(
    folder: str, other: str, expected: str, tmp_path: Path
) -> None:
    shutil.copytree(FILES / folder, tmp_path / "packed")
    edit_config(tmp_path / "packed", lambda x: x["quantization_config"].update(quant_algo=other))
    with pytest.raises(CheckpointError, match=expected):
        open_checkpoint(tmp_path / "packed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=5),
    lambda children: (
        st.lists(children, max_size=2) | st.dictionaries(st.text(max_size=5), children, max_size=2)
    ),
    max_leaves=4,
)


@functools.cache
def stated(folder: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FILES / folder / "config.json").read_text())
    return document["quantization_config"]


@functools.cache
def model() -> ModelConfig:
    return read_config(FILES / "modelopt-fp8").model


def places(value: object) -> Iterator[tuple[Any, Any]]:
    """Everything that a document holds, as what holds it and the key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        yield value, key
        if isinstance(child, dict | list):
            yield from places(child)


@given(folder=st.sampled_from(sorted(x.name for x in FILES.iterdir())), data=st.data())
def test_one_setting_that_is_anything_is_read_or_refused(folder: str, data: st.DataObject) -> None:
    quantization = copy.deepcopy(stated(folder))
    holder, key = data.draw(st.sampled_from([x for x in places(quantization) if x[1] != "ignore"]))
    if key == "quant_method":
        return
    holder[key] = data.draw(JSON)
    try:
        packing = find_packing(quantization, Path("nowhere"))
        assert packing is not None
        recipe = packing.recipe(model())
    except CheckpointError:
        return
    assert recipe.method is None
    assert packing.account
    assert packing.table
