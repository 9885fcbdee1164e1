# SPDX-License-Identifier: Apache-2.0
"""The life of the plugins, without TensorRT."""

from __future__ import annotations

import re
from pathlib import Path

from tests.plugins.tensorrt.elf import functions, needed
from tests.plugins.tensorrt.native import run

ENTRY_POINTS = {"getCreators", "getPluginCreators", "setLoggerFinder"}


def test_the_native_tests_pass(host_build: Path) -> None:
    output = run("ctest", "--tests-regex", "^tensorrt[.]", "--output-on-failure", cwd=host_build)
    passed = set(re.findall(r"Test +#\d+: (\S+) \.+ +Passed", output))
    assert passed >= {"tensorrt.plugin_life.host", "tensorrt.plugin_enqueue.host"}


def test_the_library_links_neither_tensorrt_nor_cuda(host_plugin: Path) -> None:
    assert needed(host_plugin) <= {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}


def test_the_library_exports_the_entry_points_only(host_plugin: Path) -> None:
    assert functions(host_plugin) == ENTRY_POINTS
