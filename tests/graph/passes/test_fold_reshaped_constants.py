# SPDX-License-Identifier: Apache-2.0
"""Constants that the exporter wrote as operators."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from tc_export.graph.passes.fold_reshaped_constants import fold_reshaped_constants
from tests.exported import Exported

GRAPH = """
<ir_version: 10, opset_import: ["": 23]>
graph (float[2, 3] x, float[3, 2] w) => (float[2] mean, float[2, 3] kept) {
    axis = Constant <value: tensor = int64 {-1}> ()
    shape = Constant <value: tensor = int64[1] {-1}> ()
    axes = Reshape(axis, shape)
    mean = ReduceMean <keepdims: int = 0> (x, axes)
    sizes = Constant <value: tensor = int64[2] {2, 3}> ()
    kept = Reshape(w, sizes)
}
"""


def test_a_reshaped_constant_becomes_one_and_nothing_else_changes() -> None:
    model = ir.serde.from_onnx_text(GRAPH)
    proto = onnx.parser.parse_model(GRAPH)
    feeds = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "w": np.arange(6, dtype=np.float32).reshape(3, 2),
    }
    before = ort.InferenceSession(proto.SerializeToString()).run(None, feeds)
    assert fold_reshaped_constants(model) == {"Reshape": 1}
    assert [node.op_type for node in model.graph].count("Reshape") == 1
    after = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)
    for one, two in zip(before, after, strict=True):
        assert np.array_equal(one, two)
    assert not fold_reshaped_constants(model)


def test_every_reduction_of_a_graph_has_constant_axes(exported: Exported) -> None:
    for name in ("vision", "decoder"):
        graph = onnx.load(exported.graph(name), load_external_data=False).graph
        constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
        constants |= {tensor.name for tensor in graph.initializer}
        reductions = [node for node in graph.node if node.op_type.startswith("Reduce")]
        assert all(node.input[1] in constants for node in reductions)
        assert reductions or name == "vision"
