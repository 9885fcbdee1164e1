# SPDX-License-Identifier: Apache-2.0
"""Graphs in 16-bit formats compute what PyTorch computes in them, and a fault still shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.engine.loading import Engines
from tc_export.parity.graph_engines import load_graphs
from tc_export.parity.tensors.check import check_parity
from tc_export.parity.tensors.check_bundle import references
from tc_export.parity.tensors.result import ParityResult
from tc_export.parity.tensors.scenario import standard_scenarios
from tc_export.parity.tensors.sides import OpenSide
from tc_export.targets import Precisions
from tests.checkpoint.families import save_small
from tests.exported import export_graph
from tests.repository import DEMO_CHECKPOINT

FORMATS = [
    Precisions.both("float16"),
    Precisions.both("bfloat16"),
    Precisions(vision="float16", decoder="bfloat16"),
    Precisions(vision="bfloat16", decoder="float32"),
]


DEMO = DEMO_CHECKPOINT


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(save_small(tmp_path_factory.mktemp("small")))


def export_in(checkpoint: Checkpoint, precisions: Precisions, folder: Path) -> Engines:
    """Export the checkpoint's graphs in these formats, and load them."""
    export_graph(VISION, checkpoint, precisions.vision.dtype, folder)
    export_graph(DECODER, checkpoint, precisions.decoder.dtype, folder)
    return load_graphs(folder, precisions)


def judge(checkpoint: Checkpoint, engines: Engines, precisions: Precisions) -> ParityResult:
    side = OpenSide("graphs", engines.vision, engines.decoder)
    scenarios = standard_scenarios(checkpoint.config.model, 4, 200)
    return check_parity(references(checkpoint, precisions), side, precisions, scenarios)


@pytest.mark.parametrize("precisions", FORMATS, ids=str)
def test_a_graph_is_right_in_its_formats(
    small: Checkpoint, precisions: Precisions, tmp_path: Path
) -> None:
    result = judge(small, export_in(small, precisions, tmp_path), precisions)
    assert result.passed, [x for x in result.tensors if not x.passed]
    assert result.precision == str(precisions)
    assert len({x.step for x in result.tensors if x.stage.endswith("decoder")}) > 8
    # The formats show: float32's error would be far smaller than what 16 bits leave.
    worst = max(x.engine_error / abs(x.true_value) for x in result.tensors if x.true_value)
    assert worst > 1e-5


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_fault_shows_through_the_rounding(name: str, tmp_path: Path) -> None:
    demo = open_checkpoint(DEMO)  # random weights do little with positions, trained ones much
    precisions = Precisions.both(name)
    export_in(demo, precisions, tmp_path)
    path = tmp_path / graph_path(DECODER)
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "gamma":
                attribute.f = 0.0
    onnx.save(model, path)
    assert not judge(demo, load_graphs(tmp_path, precisions), precisions).passed


def test_every_bfloat16_value_is_rounded(small: Checkpoint, tmp_path: Path) -> None:
    engines = export_in(small, Precisions.both("bfloat16"), tmp_path)
    size = small.config.model.vision.image_size
    pixels = np.random.default_rng(3).standard_normal((2, 3, size, size)).astype(np.float32)
    features = torch.from_numpy(engines.vision.run({"pixel_values": pixels})["visual_features"])
    assert torch.equal(features, features.to(torch.bfloat16).to(torch.float32))
    # And so is the input: what bfloat16 cannot tell apart gives the same result.
    rounded = torch.from_numpy(pixels).to(torch.bfloat16).to(torch.float32).numpy()
    again = engines.vision.run({"pixel_values": rounded})["visual_features"]
    assert np.array_equal(features.numpy(), again)
