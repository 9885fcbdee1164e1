# SPDX-License-Identifier: Apache-2.0
"""Attention written in the operators that it is made of."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from tc_export.errors import TcExportError, UnsupportedEnvironment
from tc_export.graph.passes.attention_in_steps import attention_in_steps

TENSORRT = (10, 3)
GRAPH = """
<ir_version: 10, opset_import: ["": 23]>
graph (float[B, 2, S, 8] q, float[B, KV, S, 8] k, float[B, KV, S, 8] v, float[S, S] mask)
    => (float[B, 2, S, 8] y)
{
    [first] a = Attention <scale: float = 0.25> (q, k, v)
    [second] y = Attention (INPUTS)
}
"""


def model_with(inputs: str = "a, k, v", key_heads: str = "2") -> ir.Model:
    text = GRAPH.replace("INPUTS", inputs).replace("KV", key_heads)
    model = ir.serde.from_onnx_text(text)
    q = model.graph.inputs[0]
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].type = q.shape, q.type
    return model


def test_each_becomes_two_products_and_a_softmax() -> None:
    feeds = {
        name: np.random.default_rng(number).standard_normal((3, 2, 5, 8), dtype=np.float32)
        for number, name in enumerate("qkv")
    } | {"mask": np.zeros((5, 5), np.float32)}
    model = model_with()
    (before,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)
    assert attention_in_steps(model, TENSORRT) == {"Attention": 2}
    operators = [node.op_type for node in model.graph]
    assert "Attention" not in operators
    assert (operators.count("MatMul"), operators.count("Softmax")) == (4, 2)
    (after,) = ort.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_a_graph_without_attention_is_as_it_was() -> None:
    model = model_with()
    attention_in_steps(model, TENSORRT)
    before = ir.to_proto(model).SerializeToString()
    assert not attention_in_steps(model, TENSORRT)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("inputs", "key_heads"), [("a, k, v, mask", "2"), ("a, k, v", "1"), ("a, k, v", "KV")]
)
def test_what_needs_more_than_these_steps_is_refused(inputs: str, key_heads: str) -> None:
    """Masks and fewer key heads, or as many as nobody knows."""
    with pytest.raises(UnsupportedEnvironment, match=r"TensorRT 10\.3, .*came with 10\.14"):
        attention_in_steps(model_with(inputs, key_heads), TENSORRT)


def test_a_head_size_that_is_not_static() -> None:
    model = model_with()
    model.graph.inputs[0].shape = ir.Shape(["B", 2, "S", "D"])
    model.graph[0].attributes.pop("scale")
    with pytest.raises(TcExportError, match="head size of q is not static"):
        attention_in_steps(model, TENSORRT)
