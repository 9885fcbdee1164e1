# SPDX-License-Identifier: Apache-2.0
"""What the parser of each TensorRT takes: versions, opsets, and nodes that are refused."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from tc_export.bundle.layout import graph_path
from tc_export.errors import TcExportError, UnsupportedEnvironment, UsageError
from tc_export.graph.tensorrt_operators import (
    FIRST_VERSION,
    check_operators,
    newest_opset,
    read_version,
)
from tests.graph.conftest import Small


def test_functions_and_lost_plugin_attributes_are_caught(
    small: Small,
) -> None:
    model = ir.load(small("float16", "causal") / graph_path("decoder"))
    model.opset_imports[""] = 20
    with pytest.raises(TcExportError, match="functions TcBlockCausalAttention, TcDualRope"):
        check_operators(model, "10.3")
    check_operators(model, "10.7")  # from here on plugins go first
    node = next(node for node in model.graph if node.op_type == "TcDualRope")
    node.attributes["plugin_namespace"] = ir.AttrString("plugin_namespace", "")
    with pytest.raises(TcExportError, match="plugin_namespace"):
        check_operators(model, "10.7")


def test_a_newer_opset_and_an_unknown_operator_are_refused() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [1, "n"])
    node = helper.make_node("NonZero", ["x"], ["y"], name="where")
    graph = helper.make_graph([node], "one", [x], [y])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))
    with pytest.raises(UnsupportedEnvironment, match=r"opset 23.*10\.3.*opset 20"):
        check_operators(model, "10.3")
    with pytest.raises(UnsupportedEnvironment, match="node where: NonZero; no version is known"):
        check_operators(model, "11.4")


@pytest.mark.parametrize(
    ("op_type", "axes", "refused", "taken"),
    [
        ("ReduceMean", "computed", ("10.3", "11.4"), ()),
        ("Unsqueeze", "computed", ("10.3", "10.6"), ("10.7", "11.4")),
        ("ReduceMean", "constant", (), ("10.3",)),
        ("Unsqueeze", "stored", (), ("10.3",)),
    ],
)
def test_axes_are_constants(
    op_type: str, axes: str, refused: tuple[str, ...], taken: tuple[str, ...]
) -> None:
    """A parser that wants a constant does not compute one from constants."""
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Constant", [], ["constant"], value=one),
        helper.make_node("Reshape", ["constant", "constant"], ["computed"]),
        helper.make_node(op_type, ["x", axes], ["y"], name="turn"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = helper.make_tensor("stored", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "one", [x], [y], [stored])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    for tensorrt in refused:
        with pytest.raises(TcExportError, match=f"axes of node turn.*{tensorrt}"):
            check_operators(model, tensorrt)
    for tensorrt in taken:
        check_operators(model, tensorrt)


@pytest.mark.parametrize("text", ["", "ten", "10", "10.x", "v10.3", "10.3-rc"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(UsageError, match=r"10\.3"):
        read_version(text)


def test_versions_and_opsets() -> None:
    assert read_version("10.16.1.11") == (10, 16)
    with pytest.raises(UnsupportedEnvironment, match=r"8\.6.*too old.*10\.3"):
        read_version("8.6")
    opsets = {"10.3": 20, "10.7": 20, "10.13": 20, "10.14": 23, "10.15": 24, "11.4": 24}
    assert {text: newest_opset(read_version(text)) for text in opsets} == opsets
    assert {name for name, since in FIRST_VERSION.items() if since > (10, 3)} == {
        "Attention",
        "RMSNormalization",
        "RotaryEmbedding",
        "TensorScatter",
    }
