# SPDX-License-Identifier: Apache-2.0
"""A pass: what is a constant anyway becomes one.

1. `Reshape(Constant, Constant)` becomes the constant that it gives. Weights are initialisers, not
   constants: none is touched.

PyTorch's exporter writes the axes of a reduction in that way. TensorRT's parser wants them as a
constant, and refuses the graph otherwise.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tc_export.graph.passes.nodes import replace_node


def fold_reshaped_constants(model: ir.Model) -> Counter[str]:
    """Replace each `Reshape(Constant, Constant)` by its value; return how many there were."""
    folded: Counter[str] = Counter()
    for node in list(model.graph):
        values = _constant_inputs(node) if node.op_type == "Reshape" and not node.domain else None
        if values is not None:
            data, shape = values
            value = ir.tensor(data.reshape(shape))
            replace_node(model, node, [ir.node("Constant", [], {"value": value})])
            folded["Reshape"] += 1
    if folded:
        RemoveUnusedNodesPass()(model)  # the constants that were reshaped
    return folded


def _constant_inputs(node: ir.Node) -> list[np.ndarray] | None:
    """The values of the node's inputs where every one is a `Constant`."""
    values = []
    for value in node.inputs:
        producer = value.producer() if value is not None else None
        if value is None or producer is None or producer.op_type != "Constant":
            return None
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            return None
        values.append(tensor.numpy())
    return values
