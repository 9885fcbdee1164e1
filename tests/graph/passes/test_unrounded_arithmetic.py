# SPDX-License-Identifier: Apache-2.0
"""16-bit graphs in float32 arithmetic: nothing is rounded but the weights that are stored."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tc_export.dtypes import DType, round_to
from tc_export.graph.passes.float32_arithmetic import compute_in_float32

WEIGHT = np.array([3.001, 2**-8], np.float32)
GRAPH = """
<ir_version: 10, opset_import: ["": 23, "tc": 1]>
graph (TYPE[2] x, TYPE[2] w) => (TYPE[2] y) {
    wide = Cast <to: int = 1> (x)
    narrow = Cast <to: int = NUMBER> (wide)
    half = Constant <value_float = 0.5> ()
    scale = CastLike(half, narrow)
    sum = Add(narrow, w)
    squared = tc.Square(sum)
    y = Mul(squared, scale)
}
<domain: "tc", opset_import: ["": 23]>
Square (x) => (y) { y = Mul(x, x) }
"""


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_nothing_is_rounded_but_the_weight(dtype: DType) -> None:
    text = GRAPH.replace("TYPE", dtype).replace("NUMBER", str(int(dtype.onnx)))
    model = onnx.parser.parse_model(text)
    model.graph.input.pop()
    stored = onnx.numpy_helper.from_array(WEIGHT.astype(dtype.numpy), "w")
    model.graph.initializer.append(stored)
    assert compute_in_float32(model, dtype, rounded=False)
    onnx.checker.check_model(model, full_check=True)
    x = np.array([1.0001, 1.0], np.float32)
    (y,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    total = x.astype(np.float64) + round_to(WEIGHT, dtype)
    np.testing.assert_allclose(y, 0.5 * total * total, rtol=1e-6)


def test_another_graph_is_left_alone() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    before = model.SerializeToString()
    assert not compute_in_float32(model, DType.FLOAT16, rounded=False)
    assert model.SerializeToString() == before
