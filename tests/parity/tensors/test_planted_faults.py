# SPDX-License-Identifier: Apache-2.0
"""Faults that an exporter or an engine could have, planted in the graph: parity catches each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tc_export.bundle.layout import graph_path
from tc_export.engine.onnxruntime import OrtEngine
from tc_export.parity.tensors.check import check_parity
from tc_export.parity.tensors.check_bundle import references
from tc_export.parity.tensors.report import failures
from tc_export.parity.tensors.result import ParityResult
from tc_export.parity.tensors.scenario import Scenario, standard_scenarios
from tc_export.parity.tensors.sides import OpenSide
from tc_export.targets import Precisions
from tests.exported import Exported

Fault = Callable[[onnx.ModelProto, Exported], None]


def scenarios(exported: Exported) -> list[Scenario]:
    """One clip between text, and clips with no text before them."""
    return standard_scenarios(exported.config, max_frames=3, max_length=100)[:2]


def check(exported: Exported, folder: Path) -> ParityResult:
    side = OpenSide(
        "engine",
        OrtEngine(folder / graph_path("vision"), threads=1),
        OrtEngine(folder / graph_path("decoder"), threads=1),
    )
    precisions = Precisions.both("float32")
    judges = references(exported.checkpoint, precisions)
    return check_parity(judges, side, precisions, scenarios(exported))


def insert_before(model: onnx.ModelProto, tensor: str, nodes: list[onnx.NodeProto]) -> None:
    """Let every node read what `nodes` make of `tensor`: their last output."""
    made = nodes[-1].output[0]
    for node in model.graph.node:
        node.input[:] = [made if name == tensor else name for name in node.input]
    for index, node in enumerate(nodes):
        model.graph.node.insert(index, node)


def constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> str:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def mask_lost(model: onnx.ModelProto, exported: Exported) -> None:
    """Causal among visual tokens: kv_end is n + 1 everywhere."""
    one = constant(model, "one", np.array(1, dtype=np.int64))
    nodes = [
        helper.make_node("Add", ["position_ids", one], ["next"]),
        helper.make_node("Cast", ["next"], ["causal_end"], to=onnx.TensorProto.INT32),
    ]
    insert_before(model, "kv_end", nodes)


def gamma_doubled(model: onnx.ModelProto, exported: Exported) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "gamma":
                attribute.f *= 2


def position_truncated(model: onnx.ModelProto, exported: Exported) -> None:
    """The fractional position cut to an integer, as a table of angles would."""
    (function,) = (x for x in model.functions if x.name == "TcDualRope")
    index = next(i for i, node in enumerate(function.node) if node.op_type == "Add")
    whole = function.node[index].output[0]
    function.node[index].output[0] = "fractional"
    function.node.insert(index + 1, helper.make_node("Floor", ["fractional"], [whole]))


def weight_rows_swapped(model: onnx.ModelProto, exported: Exported) -> None:
    name = "decoder.layers.1.self_attn.v_proj.weight"
    weight = exported.checkpoint.tensors[name].as_tensor().numpy().copy()
    weight[[0, 1]] = weight[[1, 0]]
    (initializer,) = (x for x in model.graph.initializer if x.name == name)
    initializer.CopyFrom(numpy_helper.from_array(weight, name))


def positions_off_by_one_after_the_clip(model: onnx.ModelProto, exported: Exported) -> None:
    """Temporal positions of the first scenario's text after its clip are one too high."""
    last_of_clip = 5 + 3 - 1
    one = constant(model, "one", np.array(1, dtype=np.int64))
    last = constant(model, "last", np.array(last_of_clip, dtype=np.int64))
    nodes = [
        helper.make_node("Greater", ["temporal_ids", last], ["after"]),
        helper.make_node("Add", ["temporal_ids", one], ["later"]),
        helper.make_node("Where", ["after", "later", "temporal_ids"], ["shifted"]),
    ]
    insert_before(model, "temporal_ids", nodes)


FAULTS: list[Fault] = [
    mask_lost,
    gamma_doubled,
    position_truncated,
    weight_rows_swapped,
    positions_off_by_one_after_the_clip,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_caught(exported: Exported, tmp_path: Path, fault: Fault) -> None:
    folder = exported.copy(tmp_path)
    path = folder / graph_path("decoder")
    model = onnx.load(path, load_external_data=False)
    fault(model, exported)
    onnx.save(model, path)
    result = check(exported, folder)
    assert not result.passed
    # Vision is untouched, and is not blamed.
    assert all(item.passed for item in result.tensors if "vision" in item.stage)
    assert "one clip: decoder, step 0" in failures(result)[0]


def test_vision_fault_is_caught_in_vision(exported: Exported, tmp_path: Path) -> None:
    folder = exported.copy(tmp_path)
    path = folder / graph_path("vision")
    model = onnx.load(path, load_external_data=False)
    name = "vision.vision_tower.layers.0.mlp.fc1.bias"
    bias = exported.checkpoint.tensors[name].as_tensor().numpy()[::-1].copy()
    (initializer,) = (x for x in model.graph.initializer if x.name == name)
    initializer.CopyFrom(numpy_helper.from_array(bias, name))
    onnx.save(model, path)
    result = check(exported, folder)
    assert {item.stage for item in result.tensors if not item.passed} == {
        "one clip: vision",
        "two clips and an image: vision",
    }


def test_the_right_graph_passes(exported: Exported) -> None:
    result = check(exported, exported.folder)
    assert result.passed, failures(result)
    # The tolerance is tight: the engine uses a good part of it.
    assert max(item.share for item in result.tensors) > 0.02
