# SPDX-License-Identifier: Apache-2.0
"""The custom ops on the ONNX side: schemas, translation from PyTorch, and model-local functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript.values import Opset

from tc_export.contracts import ops as contracts
from tc_export.contracts.ops import (
    DOMAIN,
    FLOAT_TYPES,
    OPSET_VERSION,
    OpContract,
)
from tc_export.dtypes import DType
from tc_export.graph.tensorrt_operators import PLUGIN_ATTRIBUTES
from tc_export.ops.block_causal_attention_function import TcBlockCausalAttention
from tc_export.ops.block_causal_attention_int8_function import TcBlockCausalAttentionInt8
from tc_export.ops.dual_rope_function import TcDualRope

_FUNCTIONS = (TcDualRope, TcBlockCausalAttention, TcBlockCausalAttentionInt8)


@cache
def register_schemas() -> None:
    """Make the ONNX checker and shape inference know the ops, as their contracts say."""
    for contract in contracts.CONTRACTS:
        schema = OpSchema(
            contract.name,
            DOMAIN,
            OPSET_VERSION,
            doc=contract.summary,
            inputs=[_formal(tensor) for tensor in contract.inputs],
            outputs=[_formal(tensor) for tensor in contract.outputs],
            type_constraints=[("T", [dtype.onnx_type for dtype in FLOAT_TYPES], "")],
            attributes=_attributes(contract),
        )
        schema.set_type_and_shape_inference_function(_shape_inference(contract))
        onnx.defs.register_schema(schema)


def _formal(tensor: contracts.TensorContract) -> OpSchema.FormalParameter:
    type_name = tensor.dtype if tensor.dtype == "T" else DType(tensor.dtype).onnx_type
    return OpSchema.FormalParameter(tensor.name, type_name, tensor.meaning)


def _attributes(contract: OpContract) -> list[OpSchema.Attribute]:
    numbers = [
        OpSchema.Attribute(name, OpSchema.AttrType.FLOAT, "", required=True)
        if default is None
        else OpSchema.Attribute(name, onnx.helper.make_attribute(name, default))
        for name, default in contract.attributes.items()
    ]
    strings = [
        OpSchema.Attribute(name, onnx.helper.make_attribute(name, value))
        for name, value in PLUGIN_ATTRIBUTES.items()
    ]
    return numbers + strings


def _shape_inference(contract: OpContract) -> Callable[[Any], None]:
    """Each output has the type and shape of the input that it is like."""
    source_of_output = [
        contract.inputs.index(contract.input_like(output)) for output in contract.outputs
    ]

    def infer(context: Any) -> None:
        for output, source in enumerate(source_of_output):
            context.set_output_type(output, context.get_input_type(source))

    return infer


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the PyTorch ops become nodes of domain `tc`, for `torch.onnx.export`."""
    tc = Opset(DOMAIN, OPSET_VERSION)

    def dual_rope(  # type: ignore[no-untyped-def]
        x, position_ids, temporal_ids, inv_freq, gamma: float, attention_factor: float = 1.0
    ):
        return tc.TcDualRope(
            x,
            position_ids,
            temporal_ids,
            inv_freq,
            gamma=gamma,
            attention_factor=attention_factor,
            **PLUGIN_ATTRIBUTES,
        )

    def block_causal_attention(  # type: ignore[no-untyped-def]
        q, k, v, kv_end, slots, past_key, past_value, scale: float
    ):
        return tc.TcBlockCausalAttention(
            q, k, v, kv_end, slots, past_key, past_value, scale=scale, **PLUGIN_ATTRIBUTES
        )

    def block_causal_attention_int8(  # type: ignore[no-untyped-def]
        q,
        k,
        v,
        kv_end,
        slots,
        past_key,
        past_value,
        past_key_scale,
        past_value_scale,
        scale: float,
    ):
        return tc.TcBlockCausalAttentionInt8(
            q,
            k,
            v,
            kv_end,
            slots,
            past_key,
            past_value,
            past_key_scale,
            past_value_scale,
            scale=scale,
            **PLUGIN_ATTRIBUTES,
        )

    return {
        torch.ops.tc.dual_rope.default: dual_rope,
        torch.ops.tc.block_causal_attention.default: block_causal_attention,
        torch.ops.tc.block_causal_attention_int8.default: block_causal_attention_int8,
    }


def attach_functions(model: ir.Model) -> None:
    """Put the ops' bodies into the model, for the nodes that it has.

    They are attached after the export: in the translation table they would be inlined.
    """
    used = custom_node_counts(model)
    for function in _FUNCTIONS:
        proto = function.to_function_proto()
        if proto.name in used:
            body = ir.serde.deserialize_function(proto)
            model.functions[body.identifier()] = body
    if used:
        model.opset_imports[DOMAIN] = OPSET_VERSION


def custom_node_counts(model: ir.Model) -> dict[str, int]:
    """How many nodes of each custom op the graph has: what a native library must serve."""
    return dict(Counter(node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN))
