# SPDX-License-Identifier: Apache-2.0
"""A pass: matrices that are stored in four or eight bits are widened where they are multiplied.

The tracer writes a linear layer as MatMul(x, Transpose(weight)). Stored whole numbers are [K, N]
already, so the transposition goes:

    MatMul(x, DequantizeLinear(values [K, N], scales [K / G, N], axis 0, blocks of G))

without a zero point. It is the form that TensorRT and TensorRT-RTX parse, and the one that ONNX
Runtime makes MatMulNBits of: with a zero point, or along the other axis, it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from tc_export.checkpoint.quantized import SCALES, VALUES, QuantizedWeight
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import TcExportError
from tc_export.graph.passes.nodes import typed


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
        values = _declare(model, name + VALUES, weight.values, weight.dtype)
        scales = _declare(model, name + SCALES, weight.scales, dtype)
        attributes = {"axis": 0, "block_size": weight.group_size}
        widened = ir.node("DequantizeLinear", [values, scales], attributes)
        widened.metadata_props.update(transpose.metadata_props)
        typed([widened], ir.DataType(dtype.onnx))
        ir.convenience.replace_nodes_and_values(
            model.graph, transpose, [transpose], [widened], transpose.outputs, widened.outputs
        )
        del model.graph.initializers[name]
    return len(quantized)


def few_bits_of(graph: Path) -> dict[str, int]:
    """How many weights a graph on the disk holds in each format of four or eight bits."""
    counts: Counter[str] = Counter()
    for value in ir.load(graph).graph.initializers.values():
        if value.name and value.name.endswith(VALUES) and value.const_value is not None:
            dtype = DType(value.const_value.dtype.name.lower())
            counts[dtype] += value.const_value.size
    return dict(counts)


def _declare(model: ir.Model, name: str, location: TensorLocation, dtype: DType) -> ir.Value:
    """An initialiser whose data is attached later."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType(dtype.onnx)),
        shape=ir.Shape(location.shape),
    )
    model.graph.initializers[name] = value
    return value
