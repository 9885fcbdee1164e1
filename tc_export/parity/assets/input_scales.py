# SPDX-License-Identifier: Apache-2.0
"""The scales by which the decoder graph rounds what enters its products: each, bit for bit.

Graphs are judged without this rounding too, where such a scale has no say.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper

from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.quantized import VALUES
from tc_export.checkpoint.reader import Checkpoint
from tc_export.contracts.graph_io import DECODER
from tc_export.dtypes import DType
from tc_export.parity.assets.comparison import AssetComparison, agreed, differs

NAME = "scales of rounded inputs"


def compare_input_scales(bundle: Path, checkpoint: Checkpoint, dtype: DType) -> AssetComparison:
    """Compare the graph's scales with the checkpoint's, rounded to `dtype`."""
    expected = {
        f"{name}.weight": rounding.scale
        for name, rounding in checkpoint.input_roundings(scales=dtype).items()
    }
    found = _scales_of(bundle / graph_path(DECODER))
    for name in sorted({*expected, *found}):
        if found.get(name) != expected.get(name):
            here, there = found.get(name, "no rounding"), expected.get(name, "no rounding")
            return differs(NAME, f"{here} at {name}", f"{there}")
    return agreed(NAME, f"{len(expected)} products", "each scale, bit for bit")


def _scales_of(path: Path) -> dict[str, float]:
    """By the name of the weight in the product; of those whose two operators agree on one."""
    graph = onnx.load(path, load_external_data=False).graph
    numbers = {
        node.output[0]: float(numpy_helper.to_array(node.attribute[0].t))
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
        if node.attribute[0].t.data_type in (1, 10, 16) and not node.attribute[0].t.dims
    }
    quantized = {x.output[0]: x for x in graph.node if x.op_type == "QuantizeLinear"}
    rounded, weights = {}, {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        before = quantized.get(node.input[0])
        if before is None:
            weights[node.output[0]] = node.input[0].removesuffix(VALUES)
        elif before.input[1] == node.input[1]:
            rounded[node.output[0]] = numbers.get(node.input[1])
    return {
        weights[node.input[1]]: scale
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
        if (scale := rounded.get(node.input[0])) is not None
    }
