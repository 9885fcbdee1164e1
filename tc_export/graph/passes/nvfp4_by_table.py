# SPDX-License-Identifier: Apache-2.0
"""A pass: weights in NVFP4 are looked up in a table, where a runtime cannot widen them.

ONNX Runtime's processor kernels do not know the format. The bytes of an initialiser stay where they
lie and are declared as what they are, bytes of two codes each:

    Gather(the sixteen numbers, Reshape(Concat(bytes & 15, bytes >> 4)))

in the place of DequantizeLinear, times the scales, each repeated for its group. It is slow, and
computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tc_export.checkpoint.four_bits import NVFP4_GROUP, NVFP4_NUMBERS

_NUMBERS = "nvfp4.numbers"


def look_up_nvfp4(model: onnx.ModelProto) -> int:
    """Rewrite a graph in place; return how many weights it looks up."""
    graph = model.graph
    packed = {x.name: x for x in graph.initializer if x.data_type == TensorProto.FLOAT4E2M1}
    if not packed:
        return 0
    table = np.array(NVFP4_NUMBERS, np.float32)
    graph.initializer.extend(
        numpy_helper.from_array(array, f"nvfp4.{name}")
        for name, array in (
            ("numbers", table),
            ("low", np.array(15, np.uint8)),
            ("shift", np.array(4, np.uint8)),
        )
    )
    nodes: list[NodeProto] = []
    for node in graph.node:
        weight = packed.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        nodes += [node] if weight is None else _looked_up(model, node, weight)
    del graph.node[:]
    graph.node.extend(nodes)
    for weight in packed.values():
        K, N = weight.dims
        weight.data_type = TensorProto.UINT8
        weight.dims[:] = [K, N // 2]
    return len(packed)


def _looked_up(model: onnx.ModelProto, node: NodeProto, weight: TensorProto) -> Iterator[NodeProto]:
    name, (K, N) = weight.name, weight.dims
    shapes = {
        "pairs": [K, N // 2, 1],
        "groups": [K // NVFP4_GROUP, NVFP4_GROUP, N],
        "one": [K // NVFP4_GROUP, 1, N],
        "all": [K, N],
    }
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(shape, np.int64), f"{name}.{key}")
        for key, shape in shapes.items()
    )

    def step(op_type: str, inputs: list[str], result: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op_type, inputs, [f"{name}.{result}"], **attributes)

    yield step("BitwiseAnd", [name, "nvfp4.low"], "first.codes")
    yield step("BitShift", [name, "nvfp4.shift"], "second.codes", direction="RIGHT")
    for half in ("first", "second"):
        yield step("Reshape", [f"{name}.{half}.codes", f"{name}.pairs"], f"{half}.pair")
    yield step("Concat", [f"{name}.first.pair", f"{name}.second.pair"], "codes", axis=2)
    yield step("Cast", [f"{name}.codes"], "places", to=TensorProto.INT32)
    yield step("Gather", [_NUMBERS, f"{name}.places"], "found")
    yield step("Reshape", [f"{name}.found", f"{name}.groups"], "in.groups")
    yield step("CastLike", [f"{name}.in.groups", node.input[1]], "numbers")
    yield step("Reshape", [node.input[1], f"{name}.one"], "scale")
    yield step("Mul", [f"{name}.numbers", f"{name}.scale"], "product")
    yield helper.make_node("Reshape", [f"{name}.product", f"{name}.all"], [node.output[0]])
