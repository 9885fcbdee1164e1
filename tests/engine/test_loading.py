# SPDX-License-Identifier: Apache-2.0
"""The exported graphs through our native library: the same results, and every node served."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from tc_export.engine import loading
from tc_export.engine.loading import load_engines
from tc_export.errors import UnsupportedEnvironment
from tc_export.native.find import NativeLibrary, find_native_library
from tc_export.parity.tensors.check import check_parity
from tc_export.parity.tensors.check_bundle import references
from tc_export.parity.tensors.report import failures
from tc_export.parity.tensors.scenario import standard_scenarios
from tc_export.parity.tensors.sides import OpenSide
from tc_export.targets import Precisions
from tests.exported import Exported


@pytest.fixture
def native() -> NativeLibrary:
    library = find_native_library()
    if library is None or not library.has_onnxruntime_ops:
        pytest.skip("the native library was not built: no C++ compiler or no ONNX Runtime headers")
    return library


def custom_nodes(exported: Exported) -> dict[str, dict[str, int]]:
    return {"vision": exported.vision.custom_nodes, "decoder": exported.decoder.custom_nodes}


def test_parity_through_the_library(exported: Exported, native: NativeLibrary) -> None:
    engines = load_engines(exported.folder, custom_nodes(exported), native=True, threads=1)
    assert engines.native
    assert engines.decoder.native_nodes == {"TcDualRope": 4, "TcBlockCausalAttention": 2}
    side = OpenSide("native", engines.vision, engines.decoder)
    scenarios = standard_scenarios(exported.config, max_frames=5, max_length=200)
    precisions = Precisions.both("float32")
    judges = references(exported.checkpoint, precisions)
    result = check_parity(judges, side, precisions, scenarios)
    assert result.passed, failures(result)


def test_the_library_is_taken_where_it_is(exported: Exported, native: NativeLibrary) -> None:
    assert load_engines(exported.folder, custom_nodes(exported), threads=1).native
    assert not load_engines(exported.folder, custom_nodes(exported), native=False).native


def test_a_node_that_is_not_served_is_an_error(
    exported: Exported, native: NativeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the library had a kernel too few: the manifest knows how many nodes there are."""
    nodes = custom_nodes(exported)
    nodes["decoder"] = {**nodes["decoder"], "TcDualRope": 5}
    with pytest.raises(UnsupportedEnvironment, match="silently"):
        load_engines(exported.folder, nodes, native=True)


def test_demanding_a_library_that_is_not_there(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> NativeLibrary:
        raise UnsupportedEnvironment("no libtc_ops.so")

    monkeypatch.setattr(loading, "require_native_library", nowhere)
    with pytest.raises(UnsupportedEnvironment, match="libtc_ops"):
        load_engines(exported.folder, custom_nodes(exported), native=True)
    monkeypatch.setattr(loading, "find_native_library", lambda: None)
    assert not load_engines(exported.folder, custom_nodes(exported)).native


def test_a_library_without_onnxruntime_ops(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built without ONNX Runtime's headers: left out, unless it is demanded."""
    bare = NativeLibrary(path=Path("bare.so"), handle=ctypes.CDLL(None), has_onnxruntime_ops=False)
    monkeypatch.setattr(loading, "find_native_library", lambda: bare)
    monkeypatch.setattr(loading, "require_native_library", lambda: bare)
    assert not load_engines(exported.folder, custom_nodes(exported)).native
    with pytest.raises(UnsupportedEnvironment, match="without ONNX Runtime's headers"):
        load_engines(exported.folder, custom_nodes(exported), native=True)
