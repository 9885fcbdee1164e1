# SPDX-License-Identifier: Apache-2.0
"""Graphs of a quantised checkpoint: they compute what it says, in few bits, on every runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import tc_export
from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.quantized import QuantizedWeight
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.contracts.graph_io import DECODER
from tc_export.contracts.parts import even_parts
from tc_export.dtypes import DType
from tc_export.graph.parts import cut_decoder
from tc_export.graph.tensorrt_form import to_tensorrt_form
from tc_export.parity.graph_engines import GraphsInTurn
from tc_export.parity.tensors.check_bundle import compare_with_pytorch
from tc_export.quantize.checkpoint import quantize_checkpoint
from tc_export.recipes import Recipe
from tc_export.targets import Precisions
from tests.checkpoint.families import save_small
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


@pytest.mark.parametrize("precision", [DType.FLOAT32, DType.FLOAT16])
@pytest.mark.parametrize("bits", ["int4", "int8"])
def test_onnx_runtime_multiplies_in_few_bits(tmp_path: Path, bits: str, precision: DType) -> None:
    """A product that stayed in floating point would be a MatMul of a widened weight."""
    checkpoint = quantised(tmp_path, bits, torch.float16)
    report = export_graph(DECODER, checkpoint, precision, tmp_path)
    options = onnxruntime.SessionOptions()
    optimised = tmp_path / "optimised.onnx"
    options.optimized_model_filepath = str(optimised)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(tmp_path / graph_path(DECODER)), options, providers=["CPUExecutionProvider"]
    )
    counts = Counter(
        node.op_type for node in onnx.load(optimised, load_external_data=False).graph.node
    )
    assert counts["MatMulNBits"] == MATRICES, counts
    assert counts["DequantizeLinear"] == 0
    # Numbers and scales stay in the checkpoint's shards; the head and norms may be converted.
    assert report.bytes_referenced >= sum(
        weight.values.nbytes for weight in checkpoint.tensors.values() if hasattr(weight, "values")
    )


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


@pytest.mark.parametrize("recipe", ["int4-weights", "int8-weights"])
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
    name = "decoder.layers.0.mlp.up_proj.weight"
    folder = bundle.parent / f"tc-llava-tiny-{recipe}"
    found, before = (open_checkpoint(x).tensors[name].as_tensor() for x in (folder, DEMO))
    assert 0 < (found - before).abs().max() < 0.2 * before.abs().max()


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
    precisions = Precisions.both("float32")
    parts = even_parts(checkpoint.config.model.text.num_hidden_layers, 1)
    graphs = GraphsInTurn(bundle, checkpoint.config.model, precisions, parts)
    profile = manifest.profile
    result = compare_with_pytorch(graphs, checkpoint, profile, precisions, bundle=bundle)
    assert not result.passed
