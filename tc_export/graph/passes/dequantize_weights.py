# SPDX-License-Identifier: Apache-2.0
"""A pass: matrices that are stored in four or eight bits are widened where they are multiplied.

The tracer writes a linear layer as MatMul(x, Transpose(weight)). Stored whole numbers are [K, N]
already, so the transposition goes:

    MatMul(x, DequantizeLinear(values [K, N], scales [K / G, N], axis 0, blocks of G))

without a zero point. It is the form that TensorRT and TensorRT-RTX parse, and the one that ONNX
Runtime makes MatMulNBits of: with a zero point, or along the other axis, it does not.

Where what enters the product is rounded too, an output channel has one scale, and runtimes multiply
numbers of eight bits:

    MatMul(DequantizeLinear(QuantizeLinear(x, s), s), DequantizeLinear(values, scales [N], axis 1))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tc_export.checkpoint.quantized import SCALES, VALUES, QuantizedWeight
from tc_export.dtypes import DType
from tc_export.errors import TcExportError
from tc_export.graph.passes.nodes import constant, typed


def dequantize_weights(
    model: ir.Model, quantized: Mapping[str, QuantizedWeight], dtype: DType
) -> int:
    """Rewrite the graph in place; return how many matrices it widens.

    Args:
        model: a traced graph, its weights not yet attached.
        quantized: those that are stored in few bits, by their names in the graph.
        dtype: what they are widened to: the graph's number format.

    Raises:
        TcExportError: such a weight is used in another way than a linear layer's.
    """
    for name, weight in quantized.items():
        value = model.graph.initializers[name]
        users = [use.node for use in value.uses()]
        if [node.op_type for node in users] != ["Transpose"]:
            found = ", ".join(node.op_type for node in users) or "nothing"
            raise TcExportError(f"{name} is quantised, and goes into {found}, not into a product")
        (transpose,) = users
        _widen(model, name, weight, transpose, dtype)
        del model.graph.initializers[name]
    _round_inputs(model, quantized, dtype)
    return len(quantized)


def _widen(
    model: ir.Model, name: str, weight: QuantizedWeight, transpose: ir.Node, dtype: DType
) -> None:
    """Put what widens a weight in the place of its transposition."""
    K, N = weight.values.shape
    one_scale = weight.group_size == K and weight.input_scale is not None
    shape = (N,) if one_scale else weight.scales.shape
    values = _declare(model, name + VALUES, weight.values.shape, weight.dtype)
    scales = _scales(model, name, shape, weight, dtype)
    attributes = {"axis": 1} if one_scale else {"axis": 0, "block_size": weight.group_size}
    widened = ir.node("DequantizeLinear", [values, scales], attributes)
    widened.metadata_props.update(transpose.metadata_props)
    typed([widened], ir.DataType(dtype.onnx))
    ir.convenience.replace_nodes_and_values(
        model.graph, transpose, [transpose], [widened], transpose.outputs, widened.outputs
    )


def _scales(
    model: ir.Model, name: str, shape: tuple[int, ...], weight: QuantizedWeight, dtype: DType
) -> ir.Value:
    """Scales in the graph's format; those of eight bits are widened in float32, and rounded."""
    if weight.global_scale is None:
        return _declare(model, name + SCALES, shape, dtype)
    few = _declare(model, name + SCALES, shape, DType.FP8)
    overall = constant(weight.global_scale.as_array()[0], ir.DataType.FLOAT)
    wide = ir.node("DequantizeLinear", [few, overall.outputs[0]])
    typed([overall, wide], ir.DataType.FLOAT)
    nodes = [overall, wide]
    if dtype is not DType.FLOAT32:
        nodes += typed(
            [ir.node("Cast", [wide.outputs[0]], {"to": dtype.onnx})], ir.DataType(dtype.onnx)
        )
    model.graph.insert_before(model.graph[0], nodes)
    return nodes[-1].outputs[0]


def _round_inputs(model: ir.Model, quantized: Mapping[str, QuantizedWeight], dtype: DType) -> None:
    """Round what enters the products.

    Each has operators of its own, where some share their inputs and its scale too: ONNX Runtime
    makes a product of whole numbers only where nothing else reads what rounds its inputs.
    """
    for name, weight in quantized.items():
        rounding = weight.input_rounding(dtype)
        if rounding is None:
            continue
        (widening,) = (use.node for use in model.graph.initializers[name + VALUES].uses())
        (product,) = (use.node for use in widening.outputs[0].uses())
        wide, few = ir.DataType(dtype.onnx), ir.DataType(weight.dtype.onnx)
        scale, zero = constant(np.float64(rounding.scale), wide), constant(np.float64(0), few)
        quantize = ir.node("QuantizeLinear", [product.inputs[0], scale.outputs[0], zero.outputs[0]])
        dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], scale.outputs[0]])
        for node in (quantize, dequantize):
            node.metadata_props.update(product.metadata_props)
        typed([scale, dequantize], wide)
        typed([zero, quantize], few)
        model.graph.insert_before(product, [scale, zero, quantize, dequantize])
        product.replace_input_with(0, dequantize.outputs[0])


def few_bits_of(graph: Path) -> dict[str, int]:
    """How many weights a graph on the disk holds in each format of four or eight bits."""
    counts: Counter[str] = Counter()
    for value in ir.load(graph).graph.initializers.values():
        if value.name and value.name.endswith(VALUES) and value.const_value is not None:
            dtype = DType.from_onnx(value.const_value.dtype)
            counts[dtype] += value.const_value.size
    return dict(counts)


def _declare(model: ir.Model, name: str, shape: tuple[int, ...], dtype: DType) -> ir.Value:
    """An initialiser whose data is attached later."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType(dtype.onnx)),
        shape=ir.Shape(shape),
    )
    model.graph.initializers[name] = value
    return value
