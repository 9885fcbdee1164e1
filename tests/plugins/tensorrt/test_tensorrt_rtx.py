# SPDX-License-Identifier: Apache-2.0
"""TensorRT-RTX parses both ops into plugin layers and builds engines from them; no GPU needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from tc_export.contracts.ops import (
    BLOCK_CAUSAL_ATTENTION,
    BLOCK_CAUSAL_ATTENTION_INT8,
    CONTRACTS,
    OpContract,
)
from tests.plugins.native import fetched
from tests.plugins.tensorrt.elf import needed
from tests.plugins.tensorrt.graphs import SIZES, Variant, one_layer

MOST_TOKENS = 40
SMS = ("SM86", "SM89", "SM120")
TYPE_NAMES = {
    "float16": ("HALF", "Half"),
    "bfloat16": ("BF16", "BFloat16"),
    "int8": ("INT8", "Int8"),
    "float32": ("FLOAT", "Float"),
}


def rtx(plugin: Path, folder: Path, variant: Variant, *, aliased: bool = True) -> dict[str, Any]:
    """Parse and build a graph; what comes back is described in rtx_worker.py."""
    model = folder / "model.onnx"
    onnx.save(one_layer(variant), model)
    worker = Path(__file__).with_name("rtx_worker.py")
    flag = "aliased" if aliased else "unaliased"
    done = subprocess.run(
        [
            sys.executable,
            str(worker),
            str(plugin),
            str(model),
            str(MOST_TOKENS),
            ",".join(SMS),
            flag,
        ],
        env=os.environ | {"PYTHONPATH": str(fetched("tensorrt-rtx"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    report: dict[str, Any] = json.loads(done.stdout)
    # Where TensorRT has no logger for the plugin, as while it parses, the plugin writes to stderr.
    report["said"] = done.stderr
    return report


def data_types(layer_line: str, which: str) -> list[str]:
    """The types of a layer's `Inputs` or `Outputs` in the builder's log."""
    tensors = re.search(rf"{which}: \[(.*?\}})\]", layer_line)
    assert tensors, layer_line
    return re.findall(r"Datatype: (\w+)", tensors[1])


over_each_cache = pytest.mark.parametrize(
    "attention", [BLOCK_CAUSAL_ATTENTION, BLOCK_CAUSAL_ATTENTION_INT8], ids=lambda op: op.name
)


def types_of_outputs(attention: OpContract, float_type: str) -> list[tuple[str, str]]:
    """What the network and the builder's log call the type of each output."""
    return [
        TYPE_NAMES[float_type if tensor.dtype == "T" else tensor.dtype]
        for tensor in attention.outputs
    ]


@pytest.mark.parametrize("float_type", ["float16", "bfloat16"])
@over_each_cache
def test_ops_become_plugin_layers_and_engines(
    host_plugin: Path, tmp_path: Path, attention: OpContract, float_type: str
) -> None:
    report = rtx(host_plugin, tmp_path, Variant(float_type=float_type, attention=attention))
    for contract in CONTRACTS:
        assert report["creators"].count(contract.name) == 1
    assert report["parsed"], report["errors"]
    assert report["layer_types"] == ["CONSTANT"] + ["PLUGIN_V3"] * 3

    types = types_of_outputs(attention, float_type)
    expected = {
        tensor.name: [[-1 if axis == "S" else SIZES[axis] for axis in tensor.axes], in_network]
        for tensor, (in_network, _) in zip(attention.outputs, types, strict=True)
    }
    assert report["outputs"] == expected

    assert set(report["engines"]) == set(SMS)
    for engine in report["engines"].values():
        assert engine["errors"] == []
        assert engine["engine_bytes"] > 0
        check_realised_layers(engine["layers"], [in_log for _, in_log in types])


@pytest.mark.slow
@over_each_cache
def test_the_library_with_cuda_code_needs_no_gpu_to_build(
    cuda_plugin: Path, tmp_path: Path, attention: OpContract
) -> None:
    assert not any("cuda" in library for library in needed(cuda_plugin))
    report = rtx(cuda_plugin, tmp_path, Variant(float_type="float16", attention=attention))
    assert report["said"] == ""
    for engine in report["engines"].values():
        assert engine["errors"] == []
        in_log = [name for _, name in types_of_outputs(attention, "float16")]
        check_realised_layers(engine["layers"], in_log)


def check_realised_layers(lines: list[str], attention_types: list[str]) -> None:
    """Three plugin layers in the types asked for, and nothing that copies or converts."""
    types = [re.findall(r"LayerType: (\w+)", line)[0] for line in lines]
    # In-place outputs keep attention out of the compiler's regions: it has a name of its own there.
    assert sorted(types) == ["PluginV3", "custom_layer", "custom_layer", "shape_call"]
    for line, layer_type in zip(lines, types, strict=True):
        if layer_type != "shape_call":
            found = data_types(line, "Outputs")
            assert found == (attention_types if len(found) > 1 else attention_types[:1])
            assert data_types(line, "Inputs")[0] == attention_types[0]


def test_in_place_caches_need_the_preview_feature(host_plugin: Path, tmp_path: Path) -> None:
    report = rtx(host_plugin, tmp_path, Variant(float_type="float16"), aliased=False)
    for engine in report["engines"].values():
        assert engine["engine_bytes"] == 0
        assert "kALIASED_PLUGIN_IO_10_03" in "\n".join(engine["errors"])


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        (Variant(float_type="float32"), "TcDualRope: x is float32, but must be float16 or"),
        (
            Variant(float_type="float16", position_type="int32"),
            "TcDualRope: position_ids is int32, but must be int64",
        ),
        (
            Variant(float_type="float16", without_attribute="gamma"),
            "TcDualRope 'node_q_rotated': gamma is missing",
        ),
        (
            Variant(float_type="float16", query_heads=5),
            "TcBlockCausalAttention: q has 5 heads, which is no multiple of the 2",
        ),
    ],
    ids=["float32", "int32 positions", "no gamma", "5 heads on 2"],
)
def test_what_is_refused_is_named(
    host_plugin: Path, tmp_path: Path, variant: Variant, said: str
) -> None:
    report = rtx(host_plugin, tmp_path, variant)
    assert not report["parsed"]
    assert said in report["said"] + "\n".join(report["errors"])
