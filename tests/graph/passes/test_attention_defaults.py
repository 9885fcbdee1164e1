# SPDX-License-Identifier: Apache-2.0
"""Attributes of attention that say what would hold without them."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tc_export.graph.passes.attention_defaults import drop_attention_defaults

GRAPH = """
<ir_version: 10, opset_import: ["": 23]>
graph (float[1, 2, 5, 8] q, float[1, 2, 5, 8] k, float[1, 2, 5, 8] v) => (float[1, 2, 5, 8] y) {
    y = Attention <ATTRIBUTES> (q, k, v)
}
"""


def model_with(attributes: str) -> ir.Model:
    return ir.serde.from_onnx_text(GRAPH.replace("ATTRIBUTES", attributes))


def test_defaults_go_and_the_rest_stays() -> None:
    model = model_with(
        "is_causal: int = 0, softcap: float = 0.0, qk_matmul_output_mode: int = 0, "
        "scale: float = 0.5"
    )
    assert drop_attention_defaults(model) == {"Attention": 1}
    (node,) = model.graph
    assert {name: item.value for name, item in node.attributes.items()} == {"scale": 0.5}
    assert not drop_attention_defaults(model)


@pytest.mark.parametrize(
    "attributes", ["is_causal: int = 1", "softcap: float = 2.0", "scale: float = 0.0"]
)
def test_what_is_no_default_stays(attributes: str) -> None:
    model = model_with(attributes)
    before = ir.to_proto(model).SerializeToString()
    assert not drop_attention_defaults(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_other_operators_keep_their_attributes() -> None:
    other = GRAPH.replace("Attention <ATTRIBUTES>", "tc.Attention <softcap: float = 0.0>")
    model = ir.serde.from_onnx_text(other.replace('"": 23', '"": 23, "tc": 1'))
    assert not drop_attention_defaults(model)
    assert [*next(iter(model.graph)).attributes] == ["softcap"]
