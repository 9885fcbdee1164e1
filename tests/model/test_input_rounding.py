# SPDX-License-Identifier: Apache-2.0
"""Inputs in eight bits, held against ONNX's own reference and loops in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from tc_export.dtypes import DType
from tc_export.model.input_rounding import InputRounding, round_inputs

FINITE = st.floats(-1e4, 1e4, width=32)


@given(values=st.lists(FINITE, min_size=1, max_size=20), scale=st.floats(0.015625, 8, width=32))
def test_whole_numbers_are_the_nearest_that_there_are(values: list[float], scale: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    found = InputRounding(DType.INT8, scale)(x).numpy()
    for value, got in zip(values, found, strict=True):
        distance = min(abs(value - number * scale) for number in range(-128, 128))
        assert abs(value - got) == pytest.approx(distance, rel=1e-12, abs=1e-12)


@given(values=st.lists(FINITE, min_size=1, max_size=20), scale=st.floats(0.015625, 8, width=32))
def test_fp8_is_the_nearest_number_of_the_format(values: list[float], scale: float) -> None:
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    x = torch.tensor(values, dtype=torch.float64)
    found = InputRounding(DType.FP8, scale)(x).numpy()
    for value, got in zip(values, found, strict=True):
        distance = np.abs(value / scale - numbers).min()
        assert abs(value - got) / scale == pytest.approx(distance, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FP8])
def test_it_is_what_the_operators_do(dtype: DType) -> None:
    """Ties and what is out of range included."""
    scale = np.float32(0.25)
    x = np.arange(-600, 600, dtype=np.float32) * np.float32(0.125)
    x[:2] = 1e5, -1e5
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    zero = onnx.numpy_helper.from_array(np.zeros((), dtype.numpy), "z")
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [len(x)])],
        [onnx.helper.make_tensor_value_info("y", 1, [len(x)])],
        [onnx.numpy_helper.from_array(np.array(scale), "s"), zero],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    found = InputRounding(dtype, float(scale))(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_format_stays(stored: torch.dtype) -> None:
    x = torch.randn(5, 7).to(stored)
    found = InputRounding(DType.INT8, 0.1)(x)
    assert found.dtype == stored
    assert found.data_ptr() != x.data_ptr()


def test_only_what_is_named_is_rounded() -> None:
    first, second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(first, second)
    x = torch.randn(3, 4)
    plain = model(x)
    rounding = InputRounding(DType.INT8, 0.5)
    round_inputs(model, {"1": rounding})
    expected = torch.nn.functional.linear(rounding(first(x)), second.weight, second.bias)
    torch.testing.assert_close(model(x), expected)
    assert not torch.equal(model(x), plain)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.FP8])
def test_dither_rounds_up_as_often_as_a_number_is_near(dtype: DType) -> None:
    """The mean of many is the number itself, which lies between the same two as without."""
    rounding = InputRounding(dtype, 0.5)
    x = torch.tensor([0.37, -1.1, 3.3, 12.26, -40.6], dtype=torch.float64)
    many = rounding(x.repeat(20_000, 1), torch.Generator().manual_seed(1))
    assert all(len(column.unique()) == 2 for column in many.T)
    step = many.amax(dim=0) - many.amin(dim=0)
    assert ((many.mean(dim=0) - x).abs() < 0.02 * step).all()
    assert ((many.amin(dim=0) <= x) & (x <= many.amax(dim=0))).all()
