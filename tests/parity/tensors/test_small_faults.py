# SPDX-License-Identifier: Apache-2.0
"""Faults that are smaller than what 16 bits cost: each shows where arithmetic is float32."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.contracts.graph_io import DECODER, GRAPHS, VISION
from tc_export.contracts.parts import even_parts
from tc_export.parity.graph_engines import GraphsInTurn
from tc_export.parity.tensors.check import check_parity
from tc_export.parity.tensors.check_bundle import graphs_in_float32, references
from tc_export.parity.tensors.report import failures
from tc_export.parity.tensors.result import ParityResult
from tc_export.parity.tensors.scenario import standard_scenarios
from tc_export.targets import Precisions
from tests.exported import export_graph
from tests.repository import DEMO_CHECKPOINT

FORMATS = ["float32", "float16", "bfloat16"]
FRAMES, TEXT_BEFORE = 4, 3


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    """A trained model: random weights do little with positions."""
    return open_checkpoint(DEMO_CHECKPOINT)


@pytest.fixture(scope="module", params=FORMATS)
def exported(
    request: pytest.FixtureRequest, demo: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Precisions, Path]:
    precisions = Precisions.both(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    for name in GRAPHS:
        export_graph(name, demo, precisions.vision.dtype, folder)
    return precisions, folder


def judge(demo: Checkpoint, precisions: Precisions, folder: Path, parts: int = 1) -> ParityResult:
    config = demo.config.model
    cut = even_parts(config.text.num_hidden_layers, parts)
    scenarios = standard_scenarios(config, FRAMES, 200)
    return check_parity(
        references(demo, precisions),
        GraphsInTurn(folder, config, precisions, cut, threads=1),
        precisions,
        [x for x in scenarios if x.name.startswith("most frames")],  # after three tokens of text
        in_float32=graphs_in_float32(folder, demo, precisions, cut, threads=1),
    )


def gamma_of_one_percent_more(model: onnx.ModelProto, demo: Checkpoint) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "gamma":
                attribute.f *= 1.01


def one_norms_epsilon_of_a_thousandth(model: onnx.ModelProto, demo: Checkpoint) -> None:
    """That of the second layer's first norm."""
    constants = {node.output[0]: node for node in model.graph.node if node.op_type == "Constant"}
    means = {node.output[0] for node in model.graph.node if node.op_type == "ReduceMean"}
    sums = [node for node in model.graph.node if node.op_type == "Add" and node.input[0] in means]
    (value,) = constants[sums[2].input[1]].attribute
    assert numpy_helper.to_array(value.t) == np.float32(demo.config.model.text.rms_norm_eps)
    value.t.CopyFrom(numpy_helper.from_array(np.array(1e-3, np.float32)))


def keys_and_values_exchanged(model: onnx.ModelProto, demo: Checkpoint) -> None:
    """In the last layer."""
    node = [x for x in model.graph.node if x.op_type == "TcBlockCausalAttention"][-1]
    node.input[1], node.input[2] = node.input[2], node.input[1]


def last_frame_sees_one_row_less(model: onnx.ModelProto, demo: Checkpoint) -> None:
    """The frame does not see its own last token; all other frames do."""
    end = TEXT_BEFORE + FRAMES * demo.config.model.tokens_per_frame
    for name, value in (("last_end", end), ("one", 1)):
        model.graph.initializer.append(
            numpy_helper.from_array(np.array(value, dtype=np.int32), name)
        )
    for node in model.graph.node:
        node.input[:] = ["wrong_end" if name == "kv_end" else name for name in node.input]
    for index, node in enumerate(
        [
            helper.make_node("Equal", ["kv_end", "last_end"], ["is_last"]),
            helper.make_node("Sub", ["kv_end", "one"], ["less"]),
            helper.make_node("Where", ["is_last", "less", "kv_end"], ["wrong_end"]),
        ]
    ):
        model.graph.node.insert(index, node)


@pytest.mark.parametrize(
    "fault",
    [
        gamma_of_one_percent_more,
        one_norms_epsilon_of_a_thousandth,
        keys_and_values_exchanged,
        last_frame_sees_one_row_less,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_fault_of_the_graph_is_caught(
    demo: Checkpoint,
    exported: tuple[Precisions, Path],
    fault: Callable[[onnx.ModelProto, Checkpoint], None],
    tmp_path: Path,
) -> None:
    precisions, folder = exported
    shutil.copytree(folder, tmp_path / "copy", copy_function=os.link)
    path = tmp_path / "copy" / graph_path(DECODER)
    model = onnx.load(path, load_external_data=False)
    fault(model, demo)
    path.unlink()  # not to write through the link
    onnx.save(model, path)
    result = judge(demo, precisions, tmp_path / "copy")
    assert not result.passed
    where = "decoder" if precisions.decoder == "float32" else "decoder in float32"
    stage = f"most frames, frame by frame: {where}"
    assert any(x.stage == stage and not x.passed for x in result.tensors), failures(result)
    assert all(x.passed for x in result.tensors if "vision" in x.stage)
    assert all(x.passed for x in result.noise if "vision" in x.stage)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_right_graphs_pass(
    demo: Checkpoint, exported: tuple[Precisions, Path], parts: int
) -> None:
    precisions, folder = exported
    result = judge(demo, precisions, folder, parts)
    assert result.passed, failures(result)
    arithmetics = 1 if precisions.decoder == "float32" else 2
    assert len(result.noise) == 2 * arithmetics
    if arithmetics == 2:
        by_stage = {
            x.stage.removeprefix("most frames, frame by frame: "): x for x in result.tensors
        }
        for graph in (VISION, DECODER):
            cost = by_stage[graph].pytorch_error
            assert by_stage[f"{graph} in float32"].pytorch_error < cost / 100


def test_only_graphs_of_16_bits_go_through_again(demo: Checkpoint, tmp_path: Path) -> None:
    config = demo.config.model
    parts = even_parts(config.text.num_hidden_layers, 1)
    assert graphs_in_float32(tmp_path, demo, Precisions.both("float32"), parts) is None
    mixed = Precisions.model_validate({"vision": "float32", "decoder": "float16"})
    for name in GRAPHS:
        export_graph(name, demo, getattr(mixed, name).dtype, tmp_path)
    result = judge(demo, mixed, tmp_path)
    assert result.passed, failures(result)
    stages = {x.stage.split(": ")[1] for x in result.noise}
    assert stages == {"vision", "decoder", "decoder in float32"}
