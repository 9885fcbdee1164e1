# SPDX-License-Identifier: Apache-2.0
"""Convolution and pooling in bfloat16, where the opset has none."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tc_export.graph.passes.bfloat16_convolution import convolve_in_float32

GRAPH = """
<ir_version: 10, opset_import: ["": 22]>
graph (TYPE[1, 2, 6, 6] x, TYPE[3, 2, 2, 2] free, TYPE[3, 2, 2, 2] kernel)
    => (TYPE[N, C, H, W] y, TYPE[N, C, H, W] z)
{
    a = Conv <strides: ints = [2, 2]> (x, kernel)
    y = AveragePool <kernel_shape: ints = [3, 3]> (a)
    z = Conv (x, free)
}
"""


def model_in(dtype: ir.DataType) -> ir.Model:
    """The graph, whose kernel is a weight."""
    model = ir.serde.from_onnx_text(GRAPH.replace("TYPE", str(dtype).lower()))
    values = np.arange(24).reshape(3, 2, 2, 2).astype(dtype.numpy())
    kernel = model.graph.inputs.pop()
    kernel.const_value = ir.tensor(values, dtype=dtype, name="kernel")
    model.graph.register_initializer(kernel)
    for node in model.graph:
        node.outputs[0].dtype = dtype
    return model


def test_each_runs_in_float32_between_casts() -> None:
    model = model_in(ir.DataType.BFLOAT16)
    assert convolve_in_float32(model) == {"Conv": 2, "AveragePool": 1}
    found = [node for node in model.graph if node.op_type in ("Conv", "AveragePool")]
    for node in found:
        assert {x.dtype for x in (*node.inputs, *node.outputs) if x} == {ir.DataType.FLOAT}
        (cast,) = node.outputs[0].consumers()
        assert cast.op_type == "Cast"
        assert cast.outputs[0].dtype is ir.DataType.BFLOAT16
    assert found[0].attributes["strides"].as_ints() == (2, 2)
    assert [value.dtype for value in model.graph.outputs] == [ir.DataType.BFLOAT16] * 2
    assert not convolve_in_float32(model)


def test_a_kernel_is_stored_in_float32_and_an_input_is_cast() -> None:
    model = model_in(ir.DataType.BFLOAT16)
    convolve_in_float32(model)
    stored, cast = (node.inputs[1] for node in model.graph if node.op_type == "Conv")
    assert stored is not None
    assert cast is not None
    tensor = ir.convenience.get_const_tensor(stored)
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), np.arange(24.0).reshape(3, 2, 2, 2))
    producer = cast.producer()
    assert producer is not None
    assert producer.op_type == "Cast"
    assert not model.graph.initializers, "the kernel in bfloat16 is of no more use"


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.FLOAT])
def test_other_formats_stay_as_they_are(dtype: ir.DataType) -> None:
    model = model_in(dtype)
    before = ir.to_proto(model).SerializeToString()
    assert not convolve_in_float32(model)
    assert ir.to_proto(model).SerializeToString() == before
