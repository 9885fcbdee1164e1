# SPDX-License-Identifier: Apache-2.0
"""bfloat16 graphs that ONNX Runtime can compute: in float32, rounded value by value."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tc_export.dtypes import DType, round_to
from tc_export.errors import TcExportError
from tc_export.graph.passes.float32_arithmetic import compute_in_float32

WEIGHT = np.array([3, 2**-8], np.float32)
GRAPH = """
<ir_version: 10, opset_import: ["": 23, "tc": 1]>
graph (TYPE[2] x, TYPE[2] w) => (TYPE[2] y, int64[1] sizes) {
    sum = Add(x, w)
    y = tc.Square(sum)
    sizes = Shape(x)
}
<domain: "tc", opset_import: ["": 23]>
Square (x) => (y) { y = Mul(x, x) }
"""


def model_in(dtype: str) -> onnx.ModelProto:
    """The graph, whose second input is a weight."""
    model = onnx.parser.parse_model(GRAPH.replace("TYPE", dtype))
    model.graph.input.pop()
    found = DType.from_alias(dtype)
    assert found is not None
    weight = WEIGHT.astype(found.numpy)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return model


def test_every_result_is_rounded_once() -> None:
    model = model_in("bfloat16")
    # One weight is cast, and two results are rounded; the function stands in place of its call.
    assert compute_in_float32(model) == {"Cast": 1, "Add": 1, "Mul": 1}
    assert not model.functions
    onnx.checker.check_model(model, full_check=True)
    x = np.array([1.01, 1.0], np.float32)
    y, sizes = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    taken = round_to(x, DType.BFLOAT16)
    total = round_to(taken + WEIGHT, DType.BFLOAT16)
    np.testing.assert_array_equal(y, round_to(total * total, DType.BFLOAT16))
    assert total[1] == 1, "1 + 2^-8 lies half-way between two numbers, and goes to the even one"
    np.testing.assert_array_equal(sizes, [2])


def test_weights_stay_as_they_are_stored() -> None:
    model = model_in("bfloat16")
    compute_in_float32(model)
    (weight,) = model.graph.initializer
    assert weight.data_type == onnx.TensorProto.BFLOAT16


def test_a_graph_without_bfloat16_is_as_it_was() -> None:
    model = model_in("float")
    before = model.SerializeToString(deterministic=True)
    assert not compute_in_float32(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_graph_with_a_subgraph_is_refused() -> None:
    text = """
    <ir_version: 10, opset_import: ["": 23]>
    graph (bool once, bfloat16[2] x) => (bfloat16[2] y) {
        [choose] y = If (once) <
            then_branch = one () => (bfloat16[2] a) { a = Identity(x) },
            else_branch = two () => (bfloat16[2] b) { b = Add(x, x) }
        >
    }
    """
    with pytest.raises(TcExportError, match="node choose holds a subgraph"):
        compute_in_float32(onnx.parser.parse_model(text))
