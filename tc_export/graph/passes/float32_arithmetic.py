# SPDX-License-Identifier: Apache-2.0
"""A bfloat16 graph for a runtime that cannot multiply bfloat16: computed in float32, and rounded.

ONNX Runtime's processor kernels know bfloat16 as something to cast and nothing more. So that a
bfloat16 graph can be compared with PyTorch here at all:

1. the model-local functions are put in the place of their calls;
2. every weight of type bfloat16 stays as it is stored, and is cast to float32 where it is used;
3. every bfloat16 result is computed in float32 and rounded to bfloat16, value by value;
4. inputs and outputs become float32; an input is rounded as it comes in.

That is what bfloat16 hardware does that accumulates in float32. What differs is where a builder
fuses operators, and then rounds less often.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto, helper, inliner

from tc_export.errors import TcExportError

_NARROW, _WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT
_STORED = ".stored"


def in_float32_arithmetic(source: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a bfloat16 graph; its external weights stay where they lie, and need not be loaded.

    Raises:
        TcExportError: the graph has parts that this rewriting does not reach (subgraphs).
    """
    model = inliner.inline_local_functions(source)
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    narrow = {
        value.name
        for value in [*graph.input, *graph.value_info, *graph.output]
        if value.type.tensor_type.elem_type == _NARROW
    }
    inputs = {value.name for value in model.graph.input} & narrow
    nodes = [*_widened_weights(model.graph)]
    for name in sorted(inputs):
        nodes += _round(name, f"{name}.taken")
    for node in model.graph.node:
        node.input[:] = [f"{name}.taken" if name in inputs else name for name in node.input]
        nodes += _rounded(node, narrow)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for value in [*model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == _NARROW:
            value.type.tensor_type.elem_type = _WIDE
    del model.graph.value_info[:]
    return model


def _cast(source: str, result: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], to=to)


def _round(source: str, result: str) -> list[NodeProto]:
    """Two casts: to the nearest bfloat16, and back."""
    rounded = f"{result}.rounded"
    return [_cast(source, rounded, _NARROW), _cast(rounded, result, _WIDE)]


def _widened_weights(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    for tensor in graph.initializer:
        if tensor.data_type == _NARROW:
            name = tensor.name
            tensor.name = name + _STORED
            yield _cast(tensor.name, name, _WIDE)


def _rounded(node: NodeProto, narrow: set[str]) -> list[NodeProto]:
    """The node in float32, with each bfloat16 result rounded."""
    subgraphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    if any(attribute.type in subgraphs for attribute in node.attribute):
        raise TcExportError(f"the graph's node {node.name or node.op_type} holds a subgraph")
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _NARROW:
            values = onnx.numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _NARROW:
            attribute.i = _WIDE
    after: list[NodeProto] = []
    for index, name in enumerate(node.output):
        if name in narrow:
            node.output[index] = f"{name}.wide"
            after += _round(node.output[index], name)
    return [node, *after]
