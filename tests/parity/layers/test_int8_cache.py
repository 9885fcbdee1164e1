# SPDX-License-Identifier: Apache-2.0
"""Layer by layer with a cache in int8: a good graph passes, and faults have their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from tc_export.dtypes import DType
from tc_export.native.find import find_native_library
from tests.exported import Exported, export_small
from tests.parity.layers import faulty
from tests.parity.layers.faulty import LAYER, Fault
from tests.parity.layers.test_planted_faults import check, culprit_of


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("deep")
    return export_small(folder, text={"num_hidden_layers": 3}, kv="int8")


def test_a_good_graph_passes(deep: Exported) -> None:
    result = check(deep, deep.folder)
    assert result.passed, result.culprit


def test_a_good_graph_in_half_precision_passes(tmp_path: Path) -> None:
    exported = export_small(tmp_path, precision=DType.FLOAT16, kv="int8")
    result = check(exported, exported.folder, "float16")
    assert result.passed, result.culprit


def test_our_native_library_passes(deep: Exported) -> None:
    library = find_native_library()
    if library is None or not library.has_onnxruntime_ops:
        pytest.skip("the native library was not built: no C++ compiler or no ONNX Runtime headers")
    result = check(deep, deep.folder, native=library.path)
    assert result.passed, result.culprit


@pytest.mark.parametrize(
    ("fault", "pattern"),
    [
        (faulty.causal, "mask"),
        (faulty.exchanged, "cache write"),
        (faulty.gamma_wrong, "temporal position"),
    ],
)
def test_a_fault_is_found_in_its_layer(
    deep: Exported, tmp_path: Path, fault: Fault, pattern: str
) -> None:
    culprit = culprit_of(deep, tmp_path, fault)
    assert (culprit.layer, culprit.pattern) == (LAYER, pattern)
