# SPDX-License-Identifier: Apache-2.0
"""What is said where something needs packages that answering does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tc_export.errors import UnsupportedEnvironment

EXPORT_PACKAGES = frozenset(
    (
        "colored",
        "matplotlib",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "polygraphy",
        "safetensors",
        "sentencepiece",
        "torch",
        "transformers",
    )
)
"""The packages of the extra `[export]`, as they are imported."""


@contextmanager
def missing_packages_named() -> Iterator[None]:
    """Say how to install a package of `[export]` that cannot be imported.

    Raises:
        UnsupportedEnvironment: in the place of the ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0].replace("-", "_")
        if package not in EXPORT_PACKAGES:
            raise
        raise UnsupportedEnvironment(
            f"this needs the package {package}, which is not installed",
            hint="pip install 'tc-export[export]'",
        ) from error
