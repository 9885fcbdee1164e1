# SPDX-License-Identifier: Apache-2.0
"""The bundle's `graph_io.json` says what its graphs say, and which limits its engines have."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from tc_export.bundle import read_manifest
from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.hf_config import Origin, read_config
from tc_export.config import (
    ModelSettings,
    PoolingConfig,
    PoolingMode,
    TemporalConfig,
    VisionFeatures,
    VisionSettings,
)
from tc_export.dtypes import DType
from tc_export.pipeline import build
from tc_export.runner import SilentReporter
from tests.bundled import MAX_LENGTH, request_for, save_with_tokenizer
from tests.checkpoint.families import edit_config

ONNX_DTYPES = {dtype.onnx: str(dtype) for dtype in DType}


def in_the_graph(values: Any) -> list[dict[str, Any]]:
    """Inputs or outputs as ONNX has them; an axis without a name in the file is None."""
    return [
        {
            "name": value.name,
            "axes": [
                axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None
                for axis in value.type.tensor_type.shape.dim
            ],
            "dtype": ONNX_DTYPES[value.type.tensor_type.elem_type],
        }
        for value in values
    ]


def in_the_document(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(tensor["meaning"] for tensor in tensors)
    return [{key: tensor[key] for key in ("name", "axes", "dtype")} for tensor in tensors]


@pytest.mark.parametrize("built", ["bundle", "ablation"])
@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_it_names_just_what_the_graphs_have(
    request: pytest.FixtureRequest, built: str, graph: str
) -> None:
    bundle: Path = request.getfixturevalue(built)
    document = json.loads((bundle / "graph_io.json").read_text())
    model = onnx.load(bundle / graph_path(graph), load_external_data=False)
    assert in_the_document(document[graph]["inputs"]) == in_the_graph(model.graph.input)
    assert in_the_document(document[graph]["outputs"]) == in_the_graph(model.graph.output)


def test_both_formats_and_the_ablations_input_are_there(ablation: Path) -> None:
    """So that the comparison above has something to tell apart."""
    document = json.loads((ablation / "graph_io.json").read_text())
    assert document["vision"]["inputs"][0]["dtype"] == "float16"
    decoder = {tensor["name"]: tensor for tensor in document["decoder"]["inputs"]}
    assert decoder["inputs_embeds"]["dtype"] == "float32"
    assert decoder["key_frame_ids"]["dtype"] == "int64"


def test_its_limits_are_those_of_the_profile(bundle: Path) -> None:
    limits = json.loads((bundle / "graph_io.json").read_text())["limits"]
    assert limits["cache_rows"] == MAX_LENGTH == read_manifest(bundle).profile.max_length
    assert 0 < limits["prefill_tokens"] <= MAX_LENGTH


def test_the_bundles_config_has_every_setting(tmp_path: Path) -> None:
    """What was asked for is read from the bundle as the checkpoint's own word."""
    checkpoint = save_with_tokenizer(tmp_path / "checkpoint")
    edit_config(checkpoint, lambda document: document.pop("vision_feature_select_strategy"))
    settings = ModelSettings(
        temporal=TemporalConfig(gamma=0.25),
        pooling=PoolingConfig(stride=1, mode=PoolingMode.MAX),
        vision=VisionSettings(features=VisionFeatures.FULL),
    )
    request = request_for(checkpoint, tmp_path / "bundle")
    build(replace(request, settings=settings, check_parity=False), SilentReporter())
    document = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert document["vision_feature_select_strategy"] == "full"
    assert document["pooling"] == {"stride": 1, "mode": "max", "before_projector": False}
    asked, found = read_config(checkpoint, settings), read_config(tmp_path / "bundle")
    assert found.model == asked.model
    assert set(found.origins.values()) == {Origin.CHECKPOINT}


def test_the_manifest_lists_it(bundle: Path) -> None:
    assert {"config.json", "graph_io.json"} <= set(read_manifest(bundle).stages["assets"].files)
