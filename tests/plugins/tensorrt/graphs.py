# SPDX-License-Identifier: Apache-2.0
"""A small ONNX graph with both ops, made from their contracts: one decoder layer's attention.

Axes: B batch 1, H query heads 4, K key/value heads 2, S tokens (dynamic), C cache rows 96,
D head size 64, R half of the rotated channels 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx
from onnx import TensorProto, helper

from tc_export.contracts.ops import (
    BLOCK_CAUSAL_ATTENTION,
    BLOCK_CAUSAL_ATTENTION_INT8,
    DOMAIN,
    DUAL_ROPE,
    OPSET_VERSION,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    OpContract,
    TensorContract,
)

SIZES: dict[str, int | str] = {"B": 1, "H": 4, "K": 2, "S": "S", "C": 96, "D": 64, "R": 32}
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}
ATTRIBUTES: dict[str, dict[str, float]] = {
    DUAL_ROPE.name: {"gamma": 0.5, "attention_factor": 1.25},
    BLOCK_CAUSAL_ATTENTION.name: {"scale": 0.125},
    BLOCK_CAUSAL_ATTENTION_INT8.name: {"scale": 0.125},
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The graph's floating-point type, and what is wrong with it, if anything."""

    float_type: str
    attention: OpContract = BLOCK_CAUSAL_ATTENTION
    position_type: str = "int64"
    without_attribute: str | None = None
    query_heads: int = 4


def node(
    contract: OpContract, inputs: list[str], outputs: list[str], without: str | None
) -> onnx.NodeProto:
    """A node of the contract's op, as the exporter writes it."""
    assert len(inputs) == len(contract.inputs)
    assert len(outputs) == len(contract.outputs)
    attributes: dict[str, Any] = {
        name: ATTRIBUTES[contract.name][name] for name in contract.attributes if name != without
    }
    return helper.make_node(
        contract.name,
        inputs,
        outputs,
        name=f"node_{outputs[0]}",
        domain=DOMAIN,
        plugin_namespace=PLUGIN_NAMESPACE,
        plugin_version=PLUGIN_VERSION,
        **attributes,
    )


def one_layer(variant: Variant) -> onnx.ModelProto:
    """q and k are rotated; then attention over the cache."""
    sizes = SIZES | {"H": variant.query_heads}
    attention = variant.attention
    named = {
        tensor.name: tensor for op in (DUAL_ROPE, attention) for tensor in (*op.inputs, *op.outputs)
    }

    def value(tensor: TensorContract) -> onnx.ValueInfoProto:
        is_position = tensor.name in ("position_ids", "temporal_ids")
        dtype = variant.position_type if is_position else tensor.dtype
        dtype = variant.float_type if dtype == "T" else dtype
        shape = [sizes[axis] for axis in tensor.axes]
        return helper.make_tensor_value_info(tensor.name, ONNX_TYPES[dtype], shape)

    half = int(SIZES["R"])
    inv_freq = helper.make_tensor(
        "inv_freq", TensorProto.FLOAT, [half], [10000.0 ** (-k / half) for k in range(half)]
    )
    positions = ["position_ids", "temporal_ids", "inv_freq"]
    rest = [name for name in attention.input_names if name not in ("q", "k")]
    missing = variant.without_attribute
    graph = helper.make_graph(
        [
            node(DUAL_ROPE, ["q", *positions], ["q_rotated"], missing),
            node(DUAL_ROPE, ["k", *positions], ["k_rotated"], missing),
            node(
                attention,
                ["q_rotated", "k_rotated", *rest],
                [tensor.name for tensor in attention.outputs],
                missing,
            ),
        ],
        "one_layer",
        [value(named[name]) for name in ("q", "k", *positions[:2], *rest)],
        [value(tensor) for tensor in attention.outputs],
        [inv_freq],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, OPSET_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
