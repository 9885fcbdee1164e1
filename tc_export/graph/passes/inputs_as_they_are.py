# SPDX-License-Identifier: Apache-2.0
"""A pass: what enters a product is no longer rounded, so that the rest of the graph can be judged.

To round is to decide, and a difference in the last bit decides otherwise: errors of a graph with
rounded inputs are as large as its rounding, and would hide any fault that is smaller.
"""

from __future__ import annotations

import onnx


def leave_inputs(model: onnx.ModelProto) -> int:
    """Take each QuantizeLinear and its inverse out of a graph; return how many there were."""
    quantized = {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }
    before = {
        node.output[0]: quantized[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized
    }
    kept = [node for node in model.graph.node if not {*node.output} & {*quantized, *before}]
    for node in kept:
        node.input[:] = [before.get(name, name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return len(quantized)
