# SPDX-License-Identifier: Apache-2.0
"""Graphs of a quantised checkpoint: they compute what it says, in few bits, on every runtime."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file

import tc_export
from tc_export.bundle.layout import graph_path
from tc_export.bundle.manifest import Manifest
from tc_export.checkpoint.four_bits import pack_int4
from tc_export.checkpoint.quantized import QuantizedWeight
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.contracts.graph_io import DECODER
from tc_export.contracts.parts import even_parts
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError
from tc_export.graph.parts import cut_decoder
from tc_export.graph.tensorrt_form import to_tensorrt_form
from tc_export.parity.graph_engines import GraphsInTurn
from tc_export.parity.graph_opener import GraphOpener
from tc_export.parity.tensors.check_bundle import compare_with_pytorch
from tc_export.quantize.checkpoint import quantize_checkpoint, recipe_for
from tc_export.recipes import Recipe, load_recipe
from tc_export.targets import Precisions
from tests.checkpoint.families import save_small
from tests.checkpoint.foreign.written import FILES
from tests.exported import export_graph
from tests.repository import REPOSITORY

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
MATRICES = 2 * 7
DEMO = REPOSITORY / "checkpoints" / "tc-llava-tiny"


def quantised(folder: Path, bits: str, stored: torch.dtype) -> Checkpoint:
    source = open_checkpoint(save_small(folder / "source", text=TEXT, dtype=stored))
    values = {
        "name": bits,
        "description": "",
        "weights": [{"names": ["decoder.layers.*_proj.weight"], "format": bits, "group_size": 32}],
    }
    recipe = Recipe.read(values, where="a test")
    return open_checkpoint(quantize_checkpoint(source, recipe, folder / "new").folder)


def optimised_by_onnx_runtime(graph: Path, folder: Path) -> Counter[str]:
    """How many nodes of each operator are left when the graph is opened as the engine opens it."""
    path = folder / "optimised.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", partial(_options, path))
        GraphOpener(path=graph, dtype=DType.FLOAT32).open()
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def _options(path: Path) -> onnxruntime.SessionOptions:
    options = onnxruntime.capi.onnxruntime_pybind11_state.SessionOptions()
    options.optimized_model_filepath = str(path)
    return options


@pytest.mark.parametrize("precision", [DType.FLOAT32, DType.FLOAT16])
@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_onnx_runtime_multiplies_in_few_bits(tmp_path: Path, bits: str, precision: DType) -> None:
    """A product that stayed in floating point would be a MatMul of a widened weight."""
    checkpoint = quantised(tmp_path, bits, torch.float16)
    report = export_graph(DECODER, checkpoint, precision, tmp_path)
    counts = optimised_by_onnx_runtime(tmp_path / graph_path(DECODER), tmp_path)
    assert counts["MatMulNBits"] == MATRICES, counts
    assert counts["DequantizeLinear"] == 0
    # Numbers and scales stay in the checkpoint's shards; the head and norms may be converted.
    assert report.bytes_referenced >= sum(
        weight.values.nbytes for weight in checkpoint.tensors.values() if hasattr(weight, "values")
    )


@pytest.mark.parametrize("rows", [1, 40])
def test_minus_eight_is_a_number_as_any(tmp_path: Path, rows: int) -> None:
    """Four bits have one more number below zero than above: the fused product and the operators
    by themselves both give what the numbers say."""
    random = np.random.default_rng(rows)
    numbers = random.integers(-8, 8, (64, 32)).astype(np.int8)
    numbers[:16, 3] = range(-8, 8)
    numbers[:, 5] = -8
    scales = random.uniform(0.5, 2, (2, 32)).astype(np.float32)
    x = random.standard_normal((rows, 64)).astype(np.float32)
    packed = pack_int4(torch.from_numpy(numbers)).numpy().tobytes()
    nodes = [
        onnx.helper.make_node("DequantizeLinear", ["n", "s"], ["w"], axis=0, block_size=32),
        onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["rows", 32])],
        [
            onnx.helper.make_tensor("n", onnx.TensorProto.INT4, [64, 32], packed, raw=True),
            onnx.numpy_helper.from_array(scales, "s"),
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
    )
    path = tmp_path / "product.onnx"
    onnx.save(model, path)
    assert optimised_by_onnx_runtime(path, tmp_path)["MatMulNBits"] == 1
    widened = numbers.astype(np.float64) * scales.astype(np.float64).repeat(32, axis=0)
    expected = x.astype(np.float64) @ widened
    found = GraphOpener(path=path, dtype=DType.FLOAT32).open().run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    (apart,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(apart, expected, rtol=1e-4, atol=1e-3)


def with_rounded_inputs(folder: Path, recipe: str) -> Checkpoint:
    values = load_recipe(recipe).model_dump(exclude={"method"}) | {"clips": 2, "passages": 1}
    found = quantize_checkpoint(open_checkpoint(DEMO), Recipe(**values), folder / "new").folder
    return open_checkpoint(found)


@pytest.mark.parametrize(
    ("target", "recipe", "precision"),
    [("thor", "nvfp4", "fp16"), ("thor", "nvfp4", "bf16"), ("h100", "fp8", "fp16")],
)
def test_formats_that_no_processor_multiplies_are_compared_here(
    tmp_path: Path, target: str, recipe: str, precision: str
) -> None:
    """The build for a device compares its graphs with the quantised model, and fails otherwise."""
    bundle = tmp_path / "bundle"
    tc_export.build(
        DEMO,
        output=bundle,
        target=target,
        quantize=recipe,
        precision=precision,
        max_frames=2,
        max_length=160,
    )
    assert json.loads((bundle / "parity" / "report.json").read_text())["passed"]
    initializers = onnx.load(bundle / graph_path(DECODER), load_external_data=False).graph
    kinds = Counter(tensor.data_type for tensor in initializers.initializer)
    matrices = 7 * open_checkpoint(DEMO).config.model.text.num_hidden_layers
    assert kinds[DType(recipe).onnx] == matrices


@pytest.mark.parametrize(
    ("recipe", "expected"), [("int8-smooth", "MatMulIntegerToFloat"), ("fp8", "MatMul")]
)
def test_products_of_rounded_inputs_are_of_whole_numbers(
    tmp_path: Path, recipe: str, expected: str
) -> None:
    checkpoint = with_rounded_inputs(tmp_path, recipe)
    layers = checkpoint.config.model.text.num_hidden_layers
    export_graph(DECODER, checkpoint, DType.FLOAT32, tmp_path)
    path = tmp_path / graph_path(DECODER)
    counts = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    assert counts["QuantizeLinear"] == 7 * layers
    assert counts["DequantizeLinear"] == (7 + 7) * layers
    optimised = optimised_by_onnx_runtime(path, tmp_path)
    head = 1 if recipe == "fp8" else 0
    assert optimised[expected] == 7 * layers + head, optimised


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("scales", 1e-9, "up_proj.weight.scales has scales that are zero or infinite in float16"),
        ("scales", 1e6, "up_proj.weight.scales has scales that are zero or infinite in float16"),
        ("input_scale", 1e-9, "up_proj.weight.input_scale is 0.0 in float16"),
    ],
)
def test_scales_that_the_graphs_format_does_not_hold(
    tmp_path: Path, part: str, value: float, expected: str
) -> None:
    """float32 holds them, and a graph in float16 would multiply by nothing."""
    source = open_checkpoint(FILES / "modelopt-fp8")
    folder = quantize_checkpoint(source, recipe_for(source, None), tmp_path / "new").folder
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    (name,) = (x for x in index if x.endswith(f"mlp.up_proj.weight.{part}"))
    tensors = load_file(folder / index[name])
    save_file(tensors | {name: torch.full_like(tensors[name], value)}, folder / index[name])
    checkpoint = open_checkpoint(folder)
    checkpoint.check_values()
    with pytest.raises(CheckpointError, match=expected):
        export_graph(DECODER, checkpoint, DType.FLOAT16, tmp_path / "graphs")


def test_parts_of_a_quantised_decoder_are_the_whole(tmp_path: Path) -> None:
    checkpoint = quantised(tmp_path, "int4", torch.float32)
    export_graph(DECODER, checkpoint, DType.FLOAT32, tmp_path)
    parts = cut_decoder(tmp_path / graph_path(DECODER), checkpoint.config.model, even_parts(2, 2))
    counts = [Counter(node.op_type for node in part.graph) for part in parts]
    assert [x["DequantizeLinear"] for x in counts] == [7, 7]


def test_tensorrt_reads_blocks_from_its_opset_on(tmp_path: Path) -> None:
    checkpoint = quantised(tmp_path, "int4", torch.float16)
    export_graph(DECODER, checkpoint, DType.FLOAT16, tmp_path)
    source = tmp_path / graph_path(DECODER)
    found = to_tensorrt_form(source, source.with_name("decoder.tensorrt.onnx"), "10.16")
    assert found.opset >= 21
    with pytest.raises(tc_export.UnsupportedEnvironment, match="DequantizeLinear"):
        to_tensorrt_form(source, source.with_name("decoder.old.onnx"), "10.3")


@pytest.mark.parametrize(
    "recipe", ["int4-weights", "int4-awq-gptq", "int8-weights", "int8-smooth", "mixed"]
)
def test_a_build_quantises_first_and_is_compared_with_what_it_made(
    tmp_path: Path, recipe: str
) -> None:
    bundle = tmp_path / "out" / "bundle"
    bundle.parent.mkdir()
    manifest = tc_export.build(DEMO, output=bundle, quantize=recipe, max_frames=2, max_length=160)
    assert manifest.engine is not None
    assert (bundle.parent / f"tc-llava-tiny-{recipe}" / "config.json").is_file()
    result = tc_export.check_parity(bundle)
    assert result.passed
    name = "decoder.layers.0.mlp.gate_proj.weight"
    folder = bundle.parent / f"tc-llava-tiny-{recipe}"
    found, before = (open_checkpoint(x).tensors[name].as_tensor() for x in (folder, DEMO))
    if load_recipe(recipe).scales_channels:  # all of a column alike
        found = found * (before.norm(dim=0) / found.norm(dim=0))
    assert 0 < (found - before).norm() < 0.2 * before.norm()


def test_a_fault_in_the_scale_of_inputs_is_caught(tmp_path: Path) -> None:
    """One scale off by 5 %: less than rounding costs, and what every product of a layer feels."""
    bundle = tmp_path / "bundle"
    manifest = tc_export.build(
        DEMO, output=bundle, quantize="int8-smooth", max_frames=2, max_length=160
    )
    path = bundle / graph_path(DECODER)
    model = onnx.load(path, load_external_data=False)
    rounds = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    (scale,) = (x for x in model.graph.node if rounds[4].input[1] in x.output)
    value = onnx.numpy_helper.to_array(scale.attribute[0].t) * np.float32(1.05)
    scale.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(value))
    path.unlink()
    onnx.save(model, path)
    checkpoint = open_checkpoint(tmp_path / "tc-llava-tiny-int8-smooth")
    assert not parity(bundle, checkpoint, manifest)


def parity(bundle: Path, checkpoint: Checkpoint, manifest: Manifest) -> bool:
    precisions = Precisions.both("float32")
    parts = even_parts(checkpoint.config.model.text.num_hidden_layers, 1)
    graphs = GraphsInTurn(bundle, checkpoint.config.model, precisions, parts)
    found = compare_with_pytorch(graphs, checkpoint, manifest.profile, precisions, bundle=bundle)
    return found.passed


def test_a_fault_in_a_scale_is_caught(tmp_path: Path) -> None:
    """Parity compares with the quantised model: one scale off by 2 % is a fault."""
    bundle = tmp_path / "bundle"
    manifest = tc_export.build(
        DEMO, output=bundle, quantize="int4-weights", max_frames=2, max_length=160
    )
    path = bundle / graph_path(DECODER)
    model = onnx.load(path, load_external_data=False)
    name = "decoder.layers.1.mlp.up_proj.weight.scales"
    (scales,) = (x for x in model.graph.initializer if x.name == name)
    weight = open_checkpoint(tmp_path / "tc-llava-tiny-int4-weights").tensors[
        name.removesuffix(".scales")
    ]
    assert isinstance(weight, QuantizedWeight)
    changed = weight.scales.as_array().astype(np.float32)
    changed[0] *= 1.02
    scales.CopyFrom(onnx.numpy_helper.from_array(changed, name))
    path.unlink()
    onnx.save(model, path)
    checkpoint = open_checkpoint(tmp_path / "tc-llava-tiny-int4-weights")
    assert not parity(bundle, checkpoint, manifest)
