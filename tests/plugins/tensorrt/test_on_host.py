# SPDX-License-Identifier: Apache-2.0
"""The life of the plugins, without TensorRT."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugins.native import run
from tests.plugins.tensorrt.elf import functions, needed

ENTRY_POINTS = {"getCreators", "getPluginCreators", "setLoggerFinder"}


def passed(folder: Path, kernels: str) -> set[str]:
    """Run the plugin's native tests over some kernels; the names of those that passed."""
    regex = f"^tensorrt[.].*[.]{kernels}$"
    output = run("ctest", "--tests-regex", regex, "--output-on-failure", cwd=folder)
    return set(re.findall(r"Test +#\d+: tensorrt\.(\S+) \.+ +Passed", output))


def test_the_plugins_live_over_host_kernels(host_build: Path) -> None:
    assert passed(host_build, "host") == {"plugin_life.host", "plugin_enqueue.host"}


@pytest.mark.slow
def test_the_plugins_live_over_the_emulated_kernels(emulated_build: Path) -> None:
    assert passed(emulated_build, "emulated") == {"plugin_life.emulated", "plugin_enqueue.emulated"}


def test_the_library_links_neither_tensorrt_nor_cuda(host_plugin: Path) -> None:
    assert needed(host_plugin) <= {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6"}


def test_the_library_exports_the_entry_points_only(host_plugin: Path) -> None:
    assert functions(host_plugin) == ENTRY_POINTS
