# SPDX-License-Identifier: Apache-2.0
"""bfloat16 in and out of ONNX Runtime, on a graph of what its CPU kernels do with it: casts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tc_export.dtypes import BFLOAT16
from tc_export.engine.onnxruntime import OrtEngine


@pytest.fixture
def engine(tmp_path: Path) -> OrtEngine:
    """`y` is `x`; `state_out` is `state` + 1, added in float32."""
    narrow, axes = TensorProto.BFLOAT16, ["rows", 2]
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Cast", ["state"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "one"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["state_out"], to=narrow),
    ]
    graph = helper.make_graph(
        nodes,
        "casts",
        [helper.make_tensor_value_info(name, narrow, axes) for name in ("x", "state")],
        [helper.make_tensor_value_info(name, narrow, axes) for name in ("y", "state_out")],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return OrtEngine(tmp_path / "model.onnx", threads=1)


def test_it_is_fed_and_handed_out_as_float32(engine: OrtEngine) -> None:
    assert engine.inputs["x"].dtype == BFLOAT16
    # 1 + 2^-8 lies half-way between two bfloat16 numbers, and goes to the even one.
    x = np.array([[1.00390625, -2.5], [3e38, 0]], np.float32).T
    results = engine.run({"x": x, "state": np.ones((2, 2), np.float32)})
    assert results["y"].dtype == np.float32
    np.testing.assert_array_equal(results["y"], x.astype(BFLOAT16).astype(np.float32))
    assert results["y"][0, 0] == 1
    np.testing.assert_array_equal(results["state_out"], np.full((2, 2), 2, np.float32))


def test_a_buffer_stays_bfloat16(engine: OrtEngine) -> None:
    buffer, other = (engine.allocate("state", (2, 2)) for _ in range(2))
    assert (buffer.numpy() == 0).all()
    values = np.array([[0.5, 1.0078125], [-3, 7]], np.float32)
    buffer.write(values)
    np.testing.assert_array_equal(buffer.numpy(), values)
    engine.bind("state", buffer)
    engine.bind("state_out", other)
    assert engine.run({"x": values}).keys() == {"y"}
    expected = (values + 1).astype(BFLOAT16).astype(np.float32)
    np.testing.assert_array_equal(other.numpy(), expected)
