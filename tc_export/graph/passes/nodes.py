# SPDX-License-Identifier: Apache-2.0
"""What passes make nodes with, and put in the place of others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def replace_node(model: ir.Model, node: ir.Node, replacement: Sequence[ir.Node]) -> None:
    """Put `replacement` in the place of `node`; its last node gives what `node` gave."""
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], replacement, node.outputs, replacement[-1].outputs
    )


def constant(data: np.ndarray | np.generic, dtype: ir.DataType | None) -> ir.Node:
    """A node that gives `data`, rounded to `dtype`."""
    assert dtype is not None
    stored = np.asarray(data).astype(dtype.numpy())
    return ir.node("Constant", [], {"value": ir.tensor(stored, dtype=dtype)})


def typed(nodes: Sequence[ir.Node], dtype: ir.DataType | None) -> list[ir.Node]:
    """Note the type of each node's result, as every other node of the graph does."""
    assert dtype is not None, "the exporter types every value"
    for node in nodes:
        node.outputs[0].dtype = dtype
    return list(nodes)
