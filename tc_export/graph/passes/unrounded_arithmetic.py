# SPDX-License-Identifier: Apache-2.0
"""A pass: a graph of 16-bit numbers is computed in float32, and nothing is rounded on the way.

So a fault of the graph can be told from the cost of its format: what is left of the format are its
weights, as they are stored.

1. The model-local functions are put in the place of their calls.
2. Every 16-bit weight stays as it is stored, and is cast to float32 where it is used.
3. Casts to the 16-bit format, constants, inputs and outputs become float32.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

NARROW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_WIDE = TensorProto.FLOAT
_STORED = ".stored"


def compute_unrounded(model: onnx.ModelProto) -> bool:
    """Rewrite a 16-bit graph in place; its external weights stay where they lie.

    Returns:
        True where the graph had 16-bit numbers; else it is as it was.
    """
    inlined = inliner.inline_local_functions(model)
    casts = [_widened(x) for x in inlined.graph.initializer if x.data_type in NARROW]
    ends = [*inlined.graph.input, *inlined.graph.output]
    narrow = [x for x in ends if x.type.tensor_type.elem_type in NARROW]
    if not casts and not narrow:
        return False
    for value in narrow:
        value.type.tensor_type.elem_type = _WIDE
    for node in inlined.graph.node:
        _widen_attributes(node)
    nodes = [*casts, *inlined.graph.node]
    del inlined.graph.node[:]
    inlined.graph.node.extend(nodes)
    del inlined.graph.value_info[:]
    model.CopyFrom(inlined)
    return True


def _widened(weight: onnx.TensorProto) -> onnx.NodeProto:
    """A cast that gives the weight's name to its value in float32."""
    name = weight.name
    weight.name = name + _STORED
    return helper.make_node("Cast", [weight.name], [name], to=_WIDE)


def _widen_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in NARROW:
            values = numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in NARROW:
            attribute.i = _WIDE
