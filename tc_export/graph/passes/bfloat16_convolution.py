# SPDX-License-Identifier: Apache-2.0
"""A pass: convolution and pooling of bfloat16 run in float32, between casts.

1. A bfloat16 input is cast to float32; a kernel or bias that is a weight is stored in float32, in
   the graph itself: exact, and a few megabytes.
2. The same operator, with the same attributes, computes in float32.
3. Its result is cast back to bfloat16.

Below opset 22 these operators know no bfloat16.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tc_export.graph.passes.nodes import constant, replace_node, typed

FIRST_BFLOAT16_OPSET = 22
"""The first in which these operators know bfloat16."""

_OPERATORS = ("Conv", "AveragePool", "MaxPool")


def convolve_in_float32(model: ir.Model) -> Counter[str]:
    """Put bfloat16 convolutions and poolings between casts; return how many, by operator."""
    replaced: Counter[str] = Counter()
    for node in list(model.graph):
        if node.op_type in _OPERATORS and not node.domain and _is_bfloat16(node):
            replace_node(model, node, _in_float32(node))
            replaced[node.op_type] += 1
    if replaced:
        RemoveUnusedNodesPass()(model)  # the kernels in bfloat16
    return replaced


def _is_bfloat16(node: ir.Node) -> bool:
    first = node.inputs[0]
    return first is not None and first.dtype is ir.DataType.BFLOAT16


def _in_float32(node: ir.Node) -> list[ir.Node]:
    before = [_widened(value) for value in node.inputs if value is not None]
    wide = ir.node(node.op_type, [x.outputs[0] for x in before], node.attributes)
    back = ir.node("Cast", [wide.outputs[0]], {"to": ir.DataType.BFLOAT16})
    return [*typed([*before, wide], ir.DataType.FLOAT), *typed([back], ir.DataType.BFLOAT16)]


def _widened(value: ir.Value) -> ir.Node:
    """A node whose output is `value` in float32: a constant where the value is one."""
    if value.is_initializer() and value.const_value is not None:
        return constant(_read(value.const_value).astype(np.float32), ir.DataType.FLOAT)
    return ir.node("Cast", [value], {"to": ir.DataType.FLOAT})


def _read(tensor: ir.TensorProtocol) -> np.ndarray:
    """The values of a weight. onnx-ir itself refuses to read a file that is hard-linked."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    shape = tensor.shape.numpy()
    values = np.fromfile(
        tensor.path, tensor.dtype.numpy(), math.prod(shape), offset=tensor.offset or 0
    )
    return values.reshape(shape)
