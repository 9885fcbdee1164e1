# SPDX-License-Identifier: Apache-2.0
"""A pass: a 16-bit graph is computed in float32, with its results rounded or as they are.

1. The model-local functions are put in the place of their calls.
2. Every weight of the format stays as it is stored, and is cast to float32 where it is used.
3. Every result of the format is computed in float32; where it is to be rounded, it is rounded to
   the format, value by value.
4. Inputs and outputs become float32; an input is rounded as it comes in, where results are.

Rounded, a bfloat16 graph runs here at all: ONNX Runtime's processor kernels know bfloat16 as
something to cast and nothing more. That is what hardware does that accumulates in float32; what
differs is where a builder fuses operators, and then rounds less often.

As they are, a graph shows what is wrong in it, apart from what its format costs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto, helper, inliner

from tc_export.dtypes import DType
from tc_export.errors import TcExportError

_WIDE = TensorProto.FLOAT
_STORED = ".stored"


def compute_in_float32(
    model: onnx.ModelProto, dtype: DType = DType.BFLOAT16, *, rounded: bool = True
) -> Counter[str]:
    """Rewrite a graph of a 16-bit format in place; its external weights stay where they lie.

    Returns:
        How many nodes were rewritten, by operator; a weight that is cast counts as a Cast. Empty
        where the graph has nothing of the format: then it is as it was.

    Raises:
        TcExportError: the graph has parts that this rewriting does not reach (subgraphs).
    """
    inlined = inliner.inline_local_functions(model)
    narrow = _values_of(inlined, dtype)
    casts = list(_widened_weights(inlined.graph, dtype))
    if not narrow and not casts:
        return Counter()
    rewritten = Counter(node.op_type for node in casts)
    nodes = casts
    inputs = {value.name for value in inlined.graph.input} & narrow if rounded else set()
    for name in sorted(inputs):
        nodes += _round(name, f"{name}.taken", dtype)
    for node in inlined.graph.node:
        rewritten.update([node.op_type] if narrow.intersection(node.output) else [])
        node.input[:] = [f"{name}.taken" if name in inputs else name for name in node.input]
        _widen(node, dtype)
        nodes += [node, *(_rounded(node, narrow, dtype) if rounded else [])]
    del inlined.graph.node[:]
    inlined.graph.node.extend(nodes)
    for value in [*inlined.graph.input, *inlined.graph.output]:
        if value.type.tensor_type.elem_type == dtype.onnx:
            value.type.tensor_type.elem_type = _WIDE
    del inlined.graph.value_info[:]
    model.CopyFrom(inlined)
    return rewritten


def _values_of(model: onnx.ModelProto, dtype: DType) -> set[str]:
    """Names of inputs, outputs and all between that are of the format."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {
        value.name
        for value in [*graph.input, *graph.value_info, *graph.output]
        if value.type.tensor_type.elem_type == dtype.onnx
    }


def _cast(source: str, result: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], to=to)


def _round(source: str, result: str, dtype: DType) -> list[NodeProto]:
    """Two casts: to the nearest number of the format, and back."""
    rounded = f"{result}.rounded"
    return [_cast(source, rounded, dtype.onnx), _cast(rounded, result, _WIDE)]


def _widened_weights(graph: onnx.GraphProto, dtype: DType) -> Iterator[NodeProto]:
    for tensor in graph.initializer:
        if tensor.data_type == dtype.onnx:
            name = tensor.name
            tensor.name = name + _STORED
            yield _cast(tensor.name, name, _WIDE)


def _widen(node: NodeProto, dtype: DType) -> None:
    """Let the node's attributes name float32 where they name the format."""
    subgraphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    if any(attribute.type in subgraphs for attribute in node.attribute):
        raise TcExportError(f"the graph's node {node.name or node.op_type} holds a subgraph")
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == dtype.onnx:
            values = onnx.numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(values, attribute.t.name))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == dtype.onnx:
            attribute.i = _WIDE


def _rounded(node: NodeProto, narrow: set[str], dtype: DType) -> list[NodeProto]:
    """What rounds each result of the node that was of the format."""
    after: list[NodeProto] = []
    for index, name in enumerate(node.output):
        if name in narrow:
            node.output[index] = f"{name}.wide"
            after += _round(node.output[index], name, dtype)
    return after
