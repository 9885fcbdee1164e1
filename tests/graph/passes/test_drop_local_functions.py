# SPDX-License-Identifier: Apache-2.0
"""The bodies of ops that plugins serve."""

from __future__ import annotations

import onnx_ir as ir

from tc_export.graph.passes.drop_local_functions import drop_local_functions

GRAPH = """
<ir_version: 10, opset_import: ["": 20, "tc": 1, "other": 1]>
graph (float[3] x) => (float[3] y) {
    a = tc.TcTwice(x)
    y = other.Thrice(a)
}
<domain: "tc", opset_import: ["": 20]>
TcTwice (x) => (y) { y = Add(x, x) }
<domain: "other", opset_import: ["": 20]>
Thrice (x) => (y) { a = Add(x, x) y = Add(a, x) }
"""


def test_our_functions_go_and_their_calls_stay() -> None:
    model = ir.serde.from_onnx_text(GRAPH)
    assert drop_local_functions(model) == {"TcTwice": 1}
    assert [function.name for function in model.functions.values()] == ["Thrice"]
    assert [node.op_type for node in model.graph] == ["TcTwice", "Thrice"]


def test_a_graph_without_them_is_as_it_was() -> None:
    model = ir.serde.from_onnx_text(GRAPH)
    drop_local_functions(model)
    before = ir.to_proto(model).SerializeToString()
    assert not drop_local_functions(model)
    assert ir.to_proto(model).SerializeToString() == before
