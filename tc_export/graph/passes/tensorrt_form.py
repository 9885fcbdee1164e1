# SPDX-License-Identifier: Apache-2.0
"""A graph in the form that a given TensorRT's parser takes.

1. The model-local functions of ops that our plugins serve are left out: before 10.7 the parser
   would inline them, and never ask for a plugin.
2. Before 10.14, `Attention` becomes MatMul, Softmax and MatMul. One with a mask is refused.
3. From 10.14 on, `Attention` states only what differs from the defaults: the parser refuses some
   attributes whatever their value.
4. Below opset 22, convolutions and pooling know no bfloat16: they run in float32 between casts, a
   convolution with a float32 kernel that is stored in the graph (exact, and a few megabytes).
5. The opset is the newest that both the graph and the parser know. Between the two no operator of
   ours means anything else; ONNX's full checker then proves that each exists there, in its types.

Weights stay where the source graph has them: the two graphs lie in one folder and share them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tc_export.contracts.ops import DOMAIN
from tc_export.errors import EnvironmentLacks, TcExportError
from tc_export.graph.export import check_graph
from tc_export.graph.onnx_ops import custom_node_counts
from tc_export.graph.tensorrt_operators import (
    FIRST_VERSION,
    Version,
    check_operators,
    has_operator,
    newest_opset,
    read_version,
    spell,
)

TENSORRT_FILE = "tensorrt.onnx"

_BFLOAT16_FROM_OPSET_22 = ("Conv", "AveragePool", "MaxPool")
_ATTENTION_DEFAULTS = {"is_causal": 0, "qk_matmul_output_mode": 0, "softcap": 0.0}


@dataclass(frozen=True, kw_only=True)
class TensorrtForm:
    """What became of a graph."""

    tensorrt: str
    opset: int
    custom_nodes: dict[str, int]
    rewritten: dict[str, int]
    """How many nodes were replaced, by operator."""


def to_tensorrt_form(source: Path, destination: Path, tensorrt: str) -> TensorrtForm:
    """Write the graph `source` to `destination`, beside it, as TensorRT `tensorrt` parses it.

    Raises:
        EnvironmentLacks: this TensorRT cannot run the graph; names the nodes.
        UsageError: `tensorrt` is no version.
        TcExportError: the two are not in one folder, and could not share their weights.
    """
    if source.resolve().parent != destination.resolve().parent:
        raise TcExportError(f"{destination} is not beside {source}, where its weights lie")
    version = read_version(tensorrt)
    model = ir.load(source)
    for identifier in [key for key in model.functions if key[0] == DOMAIN]:
        del model.functions[identifier]
    opset = min(model.opset_imports[""], newest_opset(version))
    rewritten = _rewrite(model, version, opset)
    model.opset_imports[""] = opset
    check_operators(model, tensorrt)
    _save(model, destination)
    return TensorrtForm(
        tensorrt=tensorrt,
        opset=opset,
        custom_nodes=custom_node_counts(model),
        rewritten=rewritten,
    )


def _rewrite(model: ir.Model, version: Version, opset: int) -> dict[str, int]:
    """Replace what the version lacks; return how many nodes of each operator were replaced."""
    rewritten: Counter[str] = Counter()
    for node in list(model.graph):
        replacement: list[ir.Node] = []
        if node.domain:
            continue
        if node.op_type == "Attention":
            if has_operator("Attention", version):
                _drop_defaults(node)
            else:
                replacement = _attention_in_steps(node, version)
        elif opset < 22 and node.op_type in _BFLOAT16_FROM_OPSET_22 and _is_bfloat16(node):
            replacement = _in_float32(node)
        if replacement:
            ir.convenience.replace_nodes_and_values(
                model.graph, node, [node], replacement, node.outputs, replacement[-1].outputs
            )
            rewritten[node.op_type] += 1
    RemoveUnusedNodesPass()(model)
    return dict(rewritten)


def _save(model: ir.Model, destination: Path) -> None:
    """Write beside and rename: nobody finds a graph that was not checked."""
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        ir.save(model, partial)
        check_graph(partial)
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


def _drop_defaults(node: ir.Node) -> None:
    for name, default in _ATTENTION_DEFAULTS.items():
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value == default:
            del node.attributes[name]


def _attention_in_steps(node: ir.Node, version: Version) -> list[ir.Node]:
    """Softmax(q k^T scale) v. Query and key take sqrt(scale) each, as ONNX defines: less overflow.

    Raises:
        EnvironmentLacks: the attention has a mask, a cache or fewer key heads.
    """
    q, k, v, *others = node.inputs
    if q is None or k is None or v is None:
        raise TcExportError(f"node {node.name}: an Attention without its three inputs")
    heads = {x.shape[1] if x.shape is not None and len(x.shape) == 4 else None for x in (q, k, v)}
    plain = (
        not any(others)
        and len(heads) == 1
        and None not in heads
        and all(node.attributes.get_int(x, 0) == 0 for x in ("is_causal", "qk_matmul_output_mode"))
        and node.attributes.get_float("softcap", 0.0) == 0.0
    )
    if not plain:
        raise EnvironmentLacks(
            f"node {node.name or node.outputs[0].name}: an Attention with a mask has no place in "
            f"TensorRT {spell(version)}, whose parser has no Attention; it came with "
            f"{spell(FIRST_VERSION['Attention'])}",
            hint="the mask frame_block needs it; every other mask goes through our plugin",
        )
    scale = node.attributes.get_float("scale", _default_scale(q))
    root = _constant(np.float32(math.sqrt(scale)), q.dtype)
    scaled_q = ir.node("Mul", [q, root.outputs[0]])
    turned_k = ir.node("Transpose", [k], {"perm": [0, 1, 3, 2]})
    scaled_k = ir.node("Mul", [turned_k.outputs[0], root.outputs[0]])
    scores = ir.node("MatMul", [scaled_q.outputs[0], scaled_k.outputs[0]])
    weights = ir.node("Softmax", [scores.outputs[0]], {"axis": -1})
    y = ir.node("MatMul", [weights.outputs[0], v])
    return _typed([root, scaled_q, turned_k, scaled_k, scores, weights, y], q.dtype)


def _default_scale(q: ir.Value) -> float:
    size = q.shape[3] if q.shape is not None else None
    if not isinstance(size, int):
        raise TcExportError(f"the head size of {q.name} is not static")
    return 1 / math.sqrt(size)


def _in_float32(node: ir.Node) -> list[ir.Node]:
    """The same node between casts; constants and weights are cast here and now."""
    before = [_widened(value) for value in node.inputs if value is not None]
    wide = ir.node(node.op_type, [x.outputs[0] for x in before], node.attributes)
    back = ir.node("Cast", [wide.outputs[0]], {"to": ir.DataType.BFLOAT16})
    return [*_typed([*before, wide], ir.DataType.FLOAT), *_typed([back], ir.DataType.BFLOAT16)]


def _widened(value: ir.Value) -> ir.Node:
    """A node whose output is `value` in float32: a constant where the value is one."""
    if value.is_initializer() and value.const_value is not None:
        return _constant(_read(value.const_value).astype(np.float32), ir.DataType.FLOAT)
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


def _constant(data: np.ndarray | np.generic, dtype: ir.DataType | None) -> ir.Node:
    assert dtype is not None
    stored = np.asarray(data).astype(dtype.numpy())
    return ir.node("Constant", [], {"value": ir.tensor(stored, dtype=dtype)})


def _typed(nodes: Sequence[ir.Node], dtype: ir.DataType | None) -> list[ir.Node]:
    """Note the type of each node's result, as every other node of the graph does."""
    assert dtype is not None, "the exporter types every value"
    for node in nodes:
        node.outputs[0].dtype = dtype
    return list(nodes)


def _is_bfloat16(node: ir.Node) -> bool:
    first = node.inputs[0]
    return first is not None and first.dtype is ir.DataType.BFLOAT16
