# SPDX-License-Identifier: Apache-2.0
"""Graphs for TensorRT's parser: what they contain, that they compute the same, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tc_export.bundle.layout import GRAPH_FOLDER, graph_path
from tc_export.errors import TcExportError, UnsupportedEnvironment
from tc_export.graph.export import check_graph
from tc_export.graph.passes.float32_arithmetic import compute_in_float32
from tc_export.graph.tensorrt_form import TensorrtForm, to_tensorrt_form
from tc_export.graph.tensorrt_operators import check_operators
from tests.graph.conftest import LAYERS, Small

TENSORRT_FILE = "tensorrt.onnx"

# Operators of opset 20 as onnx-tensorrt lists them for TensorRT 10.0, written down once more here.
LISTED_FOR_10_0 = """
    Add And AveragePool Cast CastLike Clip Concat Constant Conv Cos Div Equal Expand Gather
    GatherElements Gelu GreaterOrEqual Identity LayerNormalization Less MatMul Max MaxPool Min Mul
    Not Or Pow Range Reciprocal ReduceMax ReduceMean Reshape ScatterND Shape Sigmoid Sin Slice
    Softmax Sqrt Squeeze Sub Tanh Transpose Unsqueeze Where
"""
IN_10_3 = set(LISTED_FOR_10_0.split())
PREFIX_MASKS = ("causal", "full_visual", "frame_block_causal")


def form(exported: Path, graph: str, tensorrt: str) -> tuple[TensorrtForm, Path]:
    source = exported / graph_path(graph)
    destination = source.with_name(f"{graph}-{tensorrt}.onnx")
    return to_tensorrt_form(source, destination, tensorrt), destination


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def opset_of(model: onnx.ModelProto) -> int:
    return next(int(x.version) for x in model.opset_import if x.domain == "")


@pytest.mark.parametrize("graph", ["vision", "decoder"])
@pytest.mark.parametrize("mask", PREFIX_MASKS)
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_graph_for_10_3_has_only_what_its_parser_has(
    small: Small, precision: str, mask: str, graph: str
) -> None:
    exported = small(precision, mask)
    report, path = form(exported, graph, "10.3")
    model = load(path)
    assert not model.functions
    assert opset_of(model) == report.opset == 20
    standard = {node.op_type for node in model.graph.node if not node.domain}
    assert standard <= IN_10_3
    ours = [node for node in model.graph.node if node.domain]
    assert all(node.domain == "tc" for node in ours)
    plugins = {"TcDualRope": 2 * LAYERS, "TcBlockCausalAttention": LAYERS}
    assert report.custom_nodes == (plugins if graph == "decoder" else {})
    assert len(ours) == sum(report.custom_nodes.values())
    for node in ours:
        attributes = {item.name: item.s for item in node.attribute}
        assert attributes["plugin_namespace"] == b"tc"
        assert attributes["plugin_version"] == b"1"
    check_graph(path)


def test_weights_are_shared_and_nothing_else_is_written(
    small: Small,
) -> None:
    exported = small("float16", "causal")
    folder = exported / GRAPH_FOLDER
    before = {file.name for file in folder.iterdir()}
    _, path = form(exported, "decoder", "10.3")
    assert {file.name for file in folder.iterdir()} == before | {path.name}

    def places(model: onnx.ModelProto) -> dict[str, list[tuple[str, str]]]:
        return {
            tensor.name: [(entry.key, entry.value) for entry in tensor.external_data]
            for tensor in model.graph.initializer
        }

    assert places(load(path)) == places(load(folder / "decoder.onnx"))


def test_inputs_and_outputs_stay(small: Small) -> None:
    for graph in ("vision", "decoder"):
        exported = small("bfloat16", "causal")
        _, path = form(exported, graph, "10.3")
        source, made = load(exported / graph_path(graph)).graph, load(path).graph
        assert list(made.input) == list(source.input)
        assert list(made.output) == list(source.output)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_vision_graph_for_10_3_computes_the_same(small: Small, precision: str) -> None:
    """Attention in steps, and convolution and pooling in float32, against the source graph."""
    mask = "frame_block_causal"
    exported = small(precision, mask)
    report, path = form(exported, "vision", "10.3")
    in_bfloat16 = {"Conv": 1, "AveragePool": 1} if precision == "bfloat16" else {}
    assert report.rewritten == {"Attention": 2, **in_bfloat16}
    outputs = []
    for file in (exported / graph_path("vision"), path):
        outputs.append(run_vision(file, precision))
    # Both round at other places; a lost scale or a wrong axis is off by tens of per cent.
    epsilon = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[precision]
    limit = 8 * epsilon * np.abs(outputs[0]).max()
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=limit)


def run_vision(path: Path, precision: str) -> np.ndarray:
    """Features in float32; ONNX Runtime has no bfloat16 arithmetic, so that is emulated."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if precision == "bfloat16":
        model = load(path)
        assert compute_in_float32(model)
        emulated = path.with_name(f"emulated-{path.name}")
        onnx.save(model, emulated)
        path = emulated
    session = ort.InferenceSession(path, options)
    pixels = np.random.default_rng(3).standard_normal((3, 3, 32, 32)).astype(np.float32)
    if precision == "float16":
        pixels = pixels.astype(np.float16)
    (features,) = session.run(None, {"pixel_values": pixels})
    return np.asarray(features, dtype=np.float32)


def test_attention_is_refused_for_10_3_and_taken_from_10_14_on(
    small: Small,
) -> None:
    """The ablation mask goes through Attention with an explicit mask."""
    exported = small("float16", "frame_block")
    with pytest.raises(UnsupportedEnvironment, match=r"Attention.*10\.3.*10\.14") as raised:
        form(exported, "decoder", "10.3")
    assert "scaled_dot_product_attention" in str(raised.value)
    assert raised.value.exit_code == 4
    assert not list((exported / GRAPH_FOLDER).glob("decoder-10.3*"))
    for tensorrt in ("10.14", "10.16.1", "11.4"):
        report, path = form(exported, "decoder", tensorrt)
        assert report.opset == 23
        attention = [node for node in load(path).graph.node if node.op_type == "Attention"]
        assert attention
        for node in attention:
            # The parser refuses these attributes, whatever their value.
            names = {item.name for item in node.attribute}
            assert not names & {"softcap", "qk_matmul_output_mode"}
    model = ir.load(exported / GRAPH_FOLDER / "decoder-10.14.onnx")
    model.opset_imports[""] = 20
    with pytest.raises(UnsupportedEnvironment, match=r"Attention; it came with 10\.14") as raised:
        check_operators(model, "10.13")
    assert "10.13" in str(raised.value)


def attention_graph(folder: Path, **attributes: Any) -> Path:
    shape: list[int | str] = ["B", 2, "S", 16]
    tensors = [helper.make_tensor_value_info(x, TensorProto.FLOAT, shape) for x in "qkv"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="look", **attributes)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "one", tensors, [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_in_steps_takes_the_scale(tmp_path: Path, scale: float | None) -> None:
    source = attention_graph(tmp_path, **({} if scale is None else {"scale": scale}))
    to_tensorrt_form(source, tmp_path / TENSORRT_FILE, "10.3")
    random = np.random.default_rng(5)
    q, k, v = random.standard_normal((3, 2, 2, 7, 16), dtype=np.float32)
    scores = q.astype(float) @ k.astype(float).swapaxes(-1, -2) * (scale or 16**-0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    session = ort.InferenceSession(tmp_path / TENSORRT_FILE)
    (y,) = session.run(None, {"q": q, "k": k, "v": v})
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 2.0}])
def test_attention_with_more_to_it_is_refused(tmp_path: Path, attributes: dict[str, Any]) -> None:
    source = attention_graph(tmp_path, **attributes)
    with pytest.raises(UnsupportedEnvironment, match="node look"):
        to_tensorrt_form(source, tmp_path / TENSORRT_FILE, "10.3")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_weights_cannot_be_shared_across_folders(small: Small, tmp_path: Path) -> None:
    source = small("float16", "causal") / graph_path("vision")
    with pytest.raises(TcExportError, match="beside"):
        to_tensorrt_form(source, tmp_path / TENSORRT_FILE, "10.3")
