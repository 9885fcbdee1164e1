# SPDX-License-Identifier: Apache-2.0
"""A pass: `Attention` becomes the operators that it is made of.

1. `Attention(q, k, v)` without a mask becomes softmax(q kᵀ scale) v: two MatMul and a Softmax.
   Query and key take √scale each, as ONNX defines it, which overflows less. Without an attribute
   `scale`, it is 1 / √(head size).
2. One with a mask, a cache, a softcap or fewer key heads is refused.

TensorRT's parser has had `Attention` since 10.14.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx_ir as ir

from tc_export.errors import TcExportError, UnsupportedEnvironment
from tc_export.graph.passes.nodes import constant, replace_node, typed
from tc_export.graph.tensorrt_operators import FIRST_VERSION, Version, spell


def attention_in_steps(model: ir.Model, version: Version) -> Counter[str]:
    """Replace each `Attention` for a TensorRT that has none; return how many there were.

    Raises:
        UnsupportedEnvironment: an attention has a mask, a cache, a softcap or fewer key heads.
    """
    replaced: Counter[str] = Counter()
    for node in list(model.graph):
        if node.op_type == "Attention" and not node.domain:
            if not _is_plain(node):
                raise _refusal(node, version)
            replace_node(model, node, _steps(node))
            replaced["Attention"] += 1
    return replaced


def _is_plain(node: ir.Node) -> bool:
    """True where query, key and value alone say what is computed."""
    q, k, v, *others = node.inputs
    if q is None or k is None or v is None:
        raise TcExportError(f"node {node.name}: an Attention without its three inputs")
    heads = {x.shape[1] if x.shape is not None and len(x.shape) == 4 else None for x in (q, k, v)}
    return (
        not any(others)
        and len(heads) == 1
        and None not in heads
        and all(node.attributes.get_int(x, 0) == 0 for x in ("is_causal", "qk_matmul_output_mode"))
        and node.attributes.get_float("softcap", 0.0) == 0.0
    )


def _refusal(node: ir.Node, version: Version) -> UnsupportedEnvironment:
    return UnsupportedEnvironment(
        f"node {node.name or node.outputs[0].name}: an Attention with a mask has no place in "
        f"TensorRT {spell(version)}, whose parser has no Attention; it came with "
        f"{spell(FIRST_VERSION['Attention'])}",
        hint="the mask frame_block needs it; every other mask goes through our plugin",
    )


def _steps(node: ir.Node) -> list[ir.Node]:
    q, k, v = node.inputs[:3]
    assert q is not None
    scale = node.attributes.get_float("scale", _default_scale(q))
    root = constant(np.float32(math.sqrt(scale)), q.dtype)
    scaled_q = ir.node("Mul", [q, root.outputs[0]])
    turned_k = ir.node("Transpose", [k], {"perm": [0, 1, 3, 2]})
    scaled_k = ir.node("Mul", [turned_k.outputs[0], root.outputs[0]])
    scores = ir.node("MatMul", [scaled_q.outputs[0], scaled_k.outputs[0]])
    weights = ir.node("Softmax", [scores.outputs[0]], {"axis": -1})
    y = ir.node("MatMul", [weights.outputs[0], v])
    return typed([root, scaled_q, turned_k, scaled_k, scores, weights, y], q.dtype)


def _default_scale(q: ir.Value) -> float:
    size = q.shape[3] if q.shape is not None else None
    if not isinstance(size, int):
        raise TcExportError(f"the head size of {q.name} is not static")
    return 1 / math.sqrt(size)
