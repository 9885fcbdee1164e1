# SPDX-License-Identifier: Apache-2.0
"""The plugin libraries of the TensorRT plugins' own tests."""

from __future__ import annotations

from tests.plugins.tensorrt.conftest import cuda_plugin, host_build, host_plugin

__all__ = ["cuda_plugin", "host_build", "host_plugin"]
