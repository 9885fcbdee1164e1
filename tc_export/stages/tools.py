# SPDX-License-Identifier: Apache-2.0
"""The packages that a build's results depend on, and the versions that are installed.

A stage has the versions of those that it works with in its key: with another one it runs again.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

EXPORTERS = ("tc-export", "torch", "onnx", "onnx-ir", "onnxscript")
ANSWERERS = ("tc-export", "tokenizers", "jinja2", "pillow")
RUNNERS = ("tc-export", "onnxruntime")
RTX_BUILDER = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package.

    Raises:
        PackageNotFoundError: one is not installed.
    """
    return {name: version(name) for name in sorted(packages)}
