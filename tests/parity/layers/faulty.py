# SPDX-License-Identifier: Apache-2.0
"""Faults planted in one layer of an exported decoder, as an exporter could have written them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tc_export.bundle.layout import graph_path
from tc_export.graph.export import MODULE_NOTE
from tests.exported import Exported

LAYER = 1
Fault = Callable[[onnx.ModelProto, Exported], None]


def plant(exported: Exported, folder: Path, fault: Fault, graph: str = "decoder") -> Path:
    """A copy of the exported graphs, one of them with the fault."""
    copy = exported.copy(folder)
    path = copy / graph_path(graph)
    model = onnx.load(path, load_external_data=False)
    fault(model, exported)
    onnx.save(model, path)
    return copy


def nodes(model: onnx.ModelProto, module: str, op_type: str) -> list[NodeProto]:
    """A module's own nodes of an operator."""
    return [x for x in model.graph.node if x.op_type == op_type and module_of(x) == module]


def module_of(node: NodeProto) -> str | None:
    for note in node.metadata_props:
        if note.key == MODULE_NOTE:
            scopes = ast.literal_eval(note.value)
            return scopes[-2] if len(scopes) > 1 else None
    return None


def constant(model: onnx.ModelProto, value: Any, dtype: type = np.int64) -> str:
    name = f"planted{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    return name


def before(
    model: onnx.ModelProto, node: NodeProto, op_type: str, inputs: Sequence[str], **attributes: Any
) -> str:
    """Insert a node of the same module; return its result."""
    index = next(i for i, x in enumerate(model.graph.node) if x.output[0] == node.output[0])
    made = helper.make_node(op_type, list(inputs), [f"made{len(model.graph.node)}"], **attributes)
    made.name = f"planted_{made.output[0]}"
    made.metadata_props.extend(node.metadata_props)
    model.graph.node.insert(index, made)
    return str(made.output[0])


def attention(model: onnx.ModelProto) -> NodeProto:
    module = f"decoder.layers.{LAYER}.self_attn"
    kinds = ("TcBlockCausalAttention", "TcBlockCausalAttentionInt8")
    return next(node for kind in kinds for node in nodes(model, module, kind))


def rotations(model: onnx.ModelProto) -> list[NodeProto]:
    return nodes(model, f"decoder.layers.{LAYER}.self_attn", "TcDualRope")


def weight(
    model: onnx.ModelProto, exported: Exported, name: str, change: Callable[..., Any]
) -> None:
    (found,) = (x for x in model.graph.initializer if x.name == name)
    dtype = helper.tensor_dtype_to_np_dtype(found.data_type)
    values = change(exported.checkpoint.tensors[name].as_array().astype(dtype))
    found.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))


def gamma_wrong(model: onnx.ModelProto, exported: Exported) -> None:
    for node in rotations(model):
        for attribute in node.attribute:
            if attribute.name == "gamma":
                attribute.f *= 1.01


def positions_from_one(model: onnx.ModelProto, exported: Exported) -> None:
    one = constant(model, 1)
    for node in rotations(model):
        node.input[1] = before(model, node, "Add", [node.input[1], one])
        node.input[2] = before(model, node, "Add", [node.input[2], one])


def base_wrong(model: onnx.ModelProto, exported: Exported) -> None:
    (found,) = (x for x in model.graph.initializer if x.name == "decoder.inv_freq")
    inv_freq = numpy_helper.to_array(found)
    ratios = 1.01 ** -(np.arange(len(inv_freq)) / len(inv_freq))
    name = constant(model, inv_freq * ratios, np.float32)
    for node in rotations(model):
        node.input[3] = name


def causal(model: onnx.ModelProto, exported: Exported) -> None:
    node = attention(model)
    following = before(model, node, "Add", ["position_ids", constant(model, 1)])
    node.input[3] = before(model, node, "Cast", [following], to=TensorProto.INT32)


def scale_wrong(model: onnx.ModelProto, exported: Exported) -> None:
    for attribute in attention(model).attribute:
        if attribute.name == "scale":
            attribute.f *= 1.05


def row_lost(model: onnx.ModelProto, exported: Exported) -> None:
    """Row 9 is written to row 8."""
    node = attention(model)
    is_row = before(model, node, "Equal", ["position_ids", constant(model, 9)])
    step = before(model, node, "Cast", [is_row], to=TensorProto.INT64)
    node.input[4] = before(model, node, "Sub", ["position_ids", step])


def exchanged(model: onnx.ModelProto, exported: Exported) -> None:
    node = attention(model)
    node.input[1], node.input[2] = node.input[2], node.input[1]


def epsilon_wrong(model: onnx.ModelProto, exported: Exported) -> None:
    (node,) = nodes(model, f"decoder.layers.{LAYER}.input_layernorm", "Add")
    node.input[1] = constant(model, 1e-3, np.float32)


def heads_swapped(model: onnx.ModelProto, exported: Exported) -> None:
    size = exported.config.text.head_dim

    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[: 2 * size] = np.roll(values[: 2 * size], size, axis=0)
        return values

    weight(model, exported, f"decoder.layers.{LAYER}.self_attn.q_proj.weight", change)


def one_number(model: onnx.ModelProto, exported: Exported) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[2, 3] += values.std()
        return values

    weight(model, exported, f"decoder.layers.{LAYER}.mlp.up_proj.weight", change)


def no_residual(model: onnx.ModelProto, exported: Exported) -> None:
    node = nodes(model, f"decoder.layers.{LAYER}", "Add")[0]
    node.input[0] = before(model, node, "Sub", [node.input[0], node.input[0]])


def overflows(model: onnx.ModelProto, exported: Exported) -> None:
    """The MLP's product goes through float16, far above its range."""
    node = nodes(model, f"decoder.layers.{LAYER}.mlp", "Mul")[-1]
    large = before(model, node, "Mul", [node.input[0], constant(model, 1e9, np.float32)])
    small = before(model, node, "Cast", [large], to=TensorProto.FLOAT16)
    node.input[0] = before(model, node, "Cast", [small], to=TensorProto.FLOAT)
