# SPDX-License-Identifier: Apache-2.0
"""The bundle's `graph_io.json` says what its graphs say, and which limits its engines have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from tc_export.bundle import read_manifest
from tc_export.bundle.layout import graph_path
from tc_export.dtypes import DType
from tests.bundled import MAX_LENGTH

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


def test_the_manifest_lists_it(bundle: Path) -> None:
    assert {"config.json", "graph_io.json"} <= set(read_manifest(bundle).stages["assets"].files)
