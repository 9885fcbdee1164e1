# SPDX-License-Identifier: Apache-2.0
"""Files that lie, and settings that are not read: each is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tc_export.checkpoint.foreign import QUANT_METHODS, Packing, find_packing
from tc_export.checkpoint.hf_config import read_config
from tc_export.checkpoint.reader import open_checkpoint
from tc_export.errors import CheckpointError
from tc_export.quantize.checkpoint import quantize_checkpoint, recipe_for
from tests.checkpoint.families import edit_config, edit_weights, save_small
from tests.checkpoint.foreign.folders import is_projection, packed
from tests.checkpoint.foreign.packers import SCHEMES, Matrix, Parts

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
LAYER = "layers.1.mlp.up_proj"  # [96, 64]

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("float") / "source", text=TEXT, dtype=torch.float16)


@dataclass(frozen=True)
class Lie:
    """A scheme, what is wrong of it in one layer's tensors, and what is said."""

    scheme: str
    expected: str
    part: str
    change: Callable[[torch.Tensor], torch.Tensor | None]


def at(place: tuple[int, ...], value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[place] = value
        return tensor

    return change


def whole(values: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: torch.tensor(values, dtype=tensor.dtype)


LIES = {
    "fewer rows": Lie(
        "gptq int4",
        r"scales has the shape \(2, 96\), expected \(1, 96\)",
        "qweight",
        lambda x: x[:4],
    ),
    "fewer columns": Lie(
        "awq", r"qzeros has the shape \(2, 12\), expected \(2, 11\)", "qweight", lambda x: x[:, :11]
    ),
    "no zero points": Lie("awq", "qzeros is missing", "qzeros", lambda x: None),
    "no scales": Lie("compressed int8", "weight_scale is missing", "weight_scale", lambda x: None),
    "no axes": Lie("awq", "qweight has the shape", "qweight", lambda x: x.flatten()),
    "words of 64 bits": Lie("gptq int4", "qweight is int64", "qweight", lambda x: x.long()),
    "whole scales": Lie("awq", "scales is int32", "scales", lambda x: x.to(torch.int32)),
    "scales of too many groups": Lie(
        "compressed int4",
        r"weight_scale has the shape \(96, 3\), expected \(96, 2\)",
        "weight_scale",
        lambda x: torch.cat((x, x[:, :1]), dim=1),
    ),
    "a scale of zero": Lie("awq", "1 of 192 scales are not above zero", "scales", at((1, 5), 0)),
    "a scale below zero": Lie("gptq int4", "1 of 192 scales", "scales", at((1, 5), -1)),
    "a scale of NaN": Lie("awq", "1 of 192 scales", "scales", at((0, 7), float("nan"))),
    "a scale without end": Lie(
        "compressed int8", "1 of 96 scales", "weight_scale", at((0, 0), float("inf"))
    ),
    "a zero point elsewhere": Lie(
        "gptq int4",
        "says symmetric, so zero points are 8, and 1 of 192",
        "qzeros",
        at((0, 0), 0x77777776),
    ),
    "a group that is not there": Lie(
        "gptq int4", "is of group 2, and there are 2", "g_idx", at((3,), 2)
    ),
    "a group below the first": Lie("gptq int4", "is of group -1", "g_idx", at((3,), -1)),
    "a far group": Lie("gptq int4", "is of group 2147483647", "g_idx", at((3,), 2**31 - 1)),
    "another number of groups": Lie("gptq int4", "g_idx has the shape", "g_idx", lambda x: x[:-1]),
    "a shape of three": Lie(
        "compressed int4", "weight_shape has the shape", "weight_shape", whole([96, 64, 1])
    ),
    "a shape that is another's": Lie(
        "compressed int4", "weight_packed has the shape", "weight_shape", whole([64, 96])
    ),
    "a shape without end": Lie(
        "compressed int4", "weight_packed has the shape", "weight_shape", whole([2**62, 2**62])
    ),
    "a shape below zero": Lie(
        "compressed int4", "weight_packed has the shape", "weight_shape", whole([-96, -64])
    ),
    "numbers of floating point": Lie(
        "compressed int8", "weight is float16, expected int8", "weight", lambda x: x.half()
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_is_refused(name: str, source: Path, tmp_path: Path) -> None:
    lie = LIES[name]
    packed(source, tmp_path / "packed", SCHEMES[lie.scheme])

    def edit(tensors: Tensors) -> None:
        (key,) = (x for x in tensors if x.endswith(f"{LAYER}.{lie.part}"))
        changed = lie.change(tensors.pop(key))
        if changed is not None:
            tensors[key] = changed.contiguous()

    edit_weights(tmp_path / "packed", edit)
    with pytest.raises(CheckpointError, match=lie.expected) as raised:
        repack(tmp_path / "packed", tmp_path / "new")
    assert LAYER in str(raised.value)
    assert not (tmp_path / "new").exists()


def repack(folder: Path, new: Path) -> None:
    checkpoint = open_checkpoint(folder)
    quantize_checkpoint(checkpoint, recipe_for(checkpoint, None), new)


@pytest.mark.parametrize(
    ("scheme", "settings", "expected"),
    [
        ("gptq int4", {"bits": 8}, "qzeros has the shape|g_idx has the shape|scales has the shape"),
        ("gptq int4", {"group_size": 64}, "scales has the shape"),
        ("gptq int4", {"group_size": -1}, "scales has the shape"),
        ("gptq int4, zero points", {"sym": True}, "says symmetric"),
        ("gptq int4", {"checkpoint_format": "gptq_v2"}, "says symmetric"),
        ("awq", {"group_size": 16}, "qzeros has the shape"),
        ("awq", {"group_size": 48}, "no multiple of groups of 48"),
        ("awq", {"zero_point": False}, "says symmetric"),
        ("compressed int8", {"format": "pack-quantized"}, "weight_packed is missing"),
    ],
)
def test_a_configuration_of_other_tensors_is_refused(
    scheme: str, settings: dict[str, Any], expected: str, source: Path, tmp_path: Path
) -> None:
    packed(source, tmp_path / "packed", SCHEMES[scheme])
    edit_config(tmp_path / "packed", lambda x: x["quantization_config"].update(settings))
    with pytest.raises(CheckpointError, match=expected):
        repack(tmp_path / "packed", tmp_path / "new")


def test_weights_that_were_never_quantised(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "packed", SCHEMES["awq"], lambda name: False)
    with pytest.raises(CheckpointError, match="no layer has qweight, qzeros, scales"):
        open_checkpoint(tmp_path / "packed")


def test_a_weight_that_is_there_twice(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "packed", SCHEMES["awq"])

    def edit(tensors: Tensors) -> None:
        (key,) = (x for x in tensors if x.endswith(f"{LAYER}.qweight"))
        tensors[key.replace("qweight", "weight")] = torch.ones(96, 64)

    edit_weights(tmp_path / "packed", edit)
    with pytest.raises(CheckpointError, match="weight is there in floating point too"):
        open_checkpoint(tmp_path / "packed")


def test_another_models_weights(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "packed", SCHEMES["gptq int4"])
    edit_config(tmp_path / "packed", lambda x: x["text_config"].update(intermediate_size=128))
    with pytest.raises(CheckpointError, match=r"shape of .*up_proj.weight: \(96, 64\), expected"):
        open_checkpoint(tmp_path / "packed")


def test_a_quantised_head_is_refused(source: Path, tmp_path: Path) -> None:
    packed(
        source,
        tmp_path / "packed",
        SCHEMES["compressed int8"],
        lambda name: is_projection(name) or name.endswith("lm_head.weight"),
    )
    with pytest.raises(CheckpointError, match="the head stays as it is"):
        repack(tmp_path / "packed", tmp_path / "new")


def in_order_of_activations(matrix: Matrix, block: int) -> Parts:
    """Groups whose members are blocks of channels from all over the row, as desc_act makes them."""
    K = len(matrix.groups)
    order = np.random.default_rng(5).permutation(K // block)
    groups = np.repeat(np.arange(K // block)[order] * block // 32, block)
    return SCHEMES["gptq int4"].pack(replace(matrix, groups=groups))


@pytest.mark.parametrize("block", [1, 8])
def test_an_order_of_activations_is_refused(block: int, source: Path, tmp_path: Path) -> None:
    scheme = SCHEMES["gptq int4"]
    scheme = replace(
        scheme,
        pack=lambda matrix: in_order_of_activations(matrix, block),
        config=scheme.config | {"desc_act": True},
    )
    packed(source, tmp_path / "packed", scheme)
    with pytest.raises(CheckpointError, match="neighbouring channels are of different groups"):
        repack(tmp_path / "packed", tmp_path / "new")


def test_groups_in_another_order_are_kept(source: Path, tmp_path: Path) -> None:
    """Whole groups may change places: each channel's scale is that of its neighbours."""
    scheme = replace(SCHEMES["gptq int4"], pack=lambda x: in_order_of_activations(x, 32))
    made = packed(source, tmp_path / "packed", scheme)
    repack(tmp_path / "packed", tmp_path / "new")
    old, new = (open_checkpoint(tmp_path / x).tensors for x in ("packed", "new"))
    for name, weight in new.items():
        assert torch.equal(weight.as_tensor().float(), old[name].as_tensor().float())
    assert len(made) == 14


UNREAD = {
    "bits": ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "bits: .* not 3"),
    "eight bits with zero points": (
        {"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": False},
        "take nine bits",
    ),
    "settings by layer": (
        {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": 128,
            "dynamic": {"+:.*up.*": {"bits": 8}},
        },
        "settings of their own for",
    ),
    "Marlin": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"},
        "checkpoint_format: .* not 'marlin'",
    ),
    "gemv": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"},
        "version: .* not 'gemv'",
    ),
    "no groups": ({"quant_method": "awq", "bits": 4, "group_size": 0}, "group_size 0"),
    "small groups": ({"quant_method": "awq", "bits": 4, "group_size": 8}, "multiples of 16"),
    "words for numbers": ({"quant_method": "awq", "bits": "4", "group_size": 128}, "bits"),
    "sparse": (
        SCHEMES["compressed int4"].config | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparse too",
    ),
    "rotated": (
        SCHEMES["compressed int4"].config | {"transform_config": {"config_groups": {"R1": {}}}},
        "rotated too",
    ),
    "not compressed": (
        SCHEMES["compressed int4"].config | {"quantization_status": "frozen"},
        "quantization_status: .* not 'frozen'",
    ),
    "whole numbers in NVFP4": (
        SCHEMES["compressed int4"].config | {"format": "nvfp4-pack-quantized"},
        "nvfp4-pack-quantized with weights of 4 bits, type int",
    ),
    "MXFP4": (
        SCHEMES["compressed int4"].config | {"format": "mxfp4-pack-quantized"},
        "format: .* not 'mxfp4-pack-quantized'",
    ),
    "several kinds": (
        SCHEMES["compressed int4"].config
        | {
            "config_groups": SCHEMES["compressed int4"].config["config_groups"]
            | {"group_1": SCHEMES["compressed int8"].config["config_groups"]["group_0"]}
        },
        "weights of several kinds",
    ),
    "ModelOpt's AWQ": ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, "W4A16_AWQ"),
    "another library": ({"quant_method": "bitsandbytes"}, "quant_method: 'bitsandbytes'"),
    "no method": ({}, "quant_method: None"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_setting_that_is_not_read_is_named(name: str, source: Path, tmp_path: Path) -> None:
    config, expected = UNREAD[name]
    packed(source, tmp_path / "packed", SCHEMES["awq"])
    edit_config(tmp_path / "packed", lambda x: x.update(quantization_config=config))
    with pytest.raises(CheckpointError, match=expected):
        _ = read_config(tmp_path / "packed").recipe


KEYS = st.sampled_from(
    [
        *("bits", "group_size", "sym", "desc_act", "dynamic", "version", "zero_point", "format"),
        *("config_groups", "weights", "num_bits", "strategy", "type", "symmetric", "quant_algo"),
        *("input_activations", "quantization_status", "actorder", "transform_config"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(KEYS, children, max_size=4),
    max_leaves=12,
)


@given(method=st.sampled_from(QUANT_METHODS), rest=st.dictionaries(KEYS, JSON, max_size=8))
def test_whatever_a_configuration_holds_it_is_read_or_refused(
    method: str, rest: dict[str, Any]
) -> None:
    try:
        found = find_packing({**rest, "quant_method": method}, Path("nowhere"))
    except CheckpointError:
        return
    assert isinstance(found, Packing)
    assert found.description
    assert found.table
