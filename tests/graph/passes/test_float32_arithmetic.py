# SPDX-License-Identifier: Apache-2.0
"""16-bit graphs computed in float32: rounded value by value, or not at all."""

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


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_nothing_is_rounded_where_arithmetic_is_to_be_float32s(dtype: DType) -> None:
    model = model_in(dtype)
    assert compute_in_float32(model, dtype, rounded=False) == {"Cast": 1, "Add": 1, "Mul": 1}
    onnx.checker.check_model(model, full_check=True)
    (weight,) = model.graph.initializer
    assert weight.data_type == dtype.onnx, "the weights stay as they are stored"
    x = np.array([1.01, 1 / 3], np.float32)
    y, sizes = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(y, np.square(x + WEIGHT))
    np.testing.assert_array_equal(sizes, [2])


def test_float16_can_be_rounded_too() -> None:
    model = model_in("float16")
    compute_in_float32(model, DType.FLOAT16)
    x = np.array([1.01, 1 / 3], np.float32)
    y, _ = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    total = round_to(round_to(x, DType.FLOAT16) + WEIGHT, DType.FLOAT16)
    np.testing.assert_array_equal(y, round_to(total * total, DType.FLOAT16))


def test_casts_and_constants_of_the_format_become_float32() -> None:
    """A constant that the graph rounds to its format is exact then, as PyTorch has it."""
    text = """
    <ir_version: 10, opset_import: ["": 23]>
    graph (float16[2] x) => (float16[2] y) {
        exact = Constant <value = float {1.702}> ()
        narrow = Cast <to = 10> (exact)
        half = Constant <value = float16 {14336}> ()
        scaled = Mul(x, narrow)
        y = Mul(scaled, half)
    }
    """
    model = onnx.parser.parse_model(text)
    compute_in_float32(model, DType.FLOAT16, rounded=False)
    x = np.array([3.0, 5.0], np.float32)
    (y,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(y, x * np.float32(1.702) * np.float32(0.5))


def test_another_format_is_left_alone() -> None:
    model = model_in("float16")
    before = model.SerializeToString(deterministic=True)
    assert not compute_in_float32(model, DType.BFLOAT16)
    assert model.SerializeToString(deterministic=True) == before


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
