# SPDX-License-Identifier: Apache-2.0
"""A pass: what is a constant anyway becomes one.

PyTorch's exporter writes the axes of a reduction as `Reshape(Constant, Constant)`. TensorRT's
parser wants them as a constant, and refuses the graph otherwise.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def fold_reshaped_constants(model: ir.Model) -> bool:
    """Replace each `Reshape(Constant, Constant)` by its value; True where there was one.

    Weights are initialisers, not constants: none is touched.
    """
    folded = False
    for node in list(model.graph):
        values = _constant_inputs(node) if node.op_type == "Reshape" and not node.domain else None
        if values is None:
            continue
        data, shape = values
        constant = ir.node("Constant", [], {"value": ir.tensor(data.reshape(shape))})
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [constant], node.outputs, constant.outputs
        )
        folded = True
    if folded:
        RemoveUnusedNodesPass()(model)
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
