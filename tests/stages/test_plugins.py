# SPDX-License-Identifier: Apache-2.0
"""The plugins' stage: a library that is compiled here, or the sources for the device's compiler."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tc_export.bundle import read_manifest, verify
from tc_export.bundle.layout import PLUGIN_SOURCES
from tc_export.native import build as native_build
from tc_export.native.build import can_compile_for, find_sources
from tc_export.native.sources import library_sources
from tc_export.pipeline import BuildRequest
from tc_export.stages import plugins
from tests.stages.conftest import Tools, built

LIBRARY = "plugins/aarch64-sm87/libtc_tensorrt.so"


@pytest.fixture(autouse=True)
def compiler_of_cuda_13(tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build, "_cuda_version", lambda: "13.0")
    monkeypatch.setattr(plugins, "can_compile_for", can_compile_for)


def test_jetpack_6_is_sent_the_sources_and_no_library(request_: BuildRequest, tools: Tools) -> None:
    manifest, _ = built(replace(request_, target="orin", release="10.3"))
    assert not tools.compiled
    sources = {
        f"{PLUGIN_SOURCES}/{source.as_posix()}" for source in library_sources(find_sources())
    }
    assert {path for path in manifest.files if path.startswith("plugins/")} == sources
    assert not any("test" in path for path in sources)
    spec = json.loads((request_.output / "finish" / "finish.json").read_text())
    assert (spec["release"], spec["cuda"]) == ("JetPack 6.2", "12.6")
    assert (spec["plugin_sources"], spec["plugin_library"]) == (PLUGIN_SOURCES, LIBRARY)
    sums = (request_.output / "finish" / "SHA256SUMS").read_text()
    assert all(f"  {source}\n" in sums for source in sources)
    assert LIBRARY not in sums
    assert manifest.engine is not None
    assert manifest.engine.state == "pending"
    assert verify(request_.output) == []


def test_jetpack_7_is_sent_the_library(request_: BuildRequest, tools: Tools) -> None:
    manifest, _ = built(replace(request_, target="orin"))
    assert tools.compiled == ["orin"]
    assert [path for path in manifest.files if path.startswith("plugins/")] == [LIBRARY]
    spec = json.loads((request_.output / "finish" / "finish.json").read_text())
    assert spec["plugin_sources"] is None


def test_from_one_release_to_the_other_and_back(request_: BuildRequest, tools: Tools) -> None:
    for release, first in (
        ("10.3", "plugins/source"),
        ("10.16", LIBRARY),
        ("10.3", "plugins/source"),
    ):
        manifest, _ = built(replace(request_, target="orin", release=release))
        assert verify(request_.output) == []
        assert all(x.startswith(first) for x in manifest.files if x.startswith("plugins/"))
        assert read_manifest(request_.output).release == manifest.release
        assert manifest.release is not None
        assert manifest.release.tensorrt == release
