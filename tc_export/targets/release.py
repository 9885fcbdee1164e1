# SPDX-License-Identifier: Apache-2.0
"""The software of a device: which versions come together, and which one is built for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tc_export.config import Config
from tc_export.errors import UsageError

if TYPE_CHECKING:
    from tc_export.targets.target import Target


SCALES_FOR_BLOCKS = (10, 14)
"""Major and minor of the first TensorRT whose parser is known to read DequantizeLinear with a scale
for each block, which came with ONNX opset 21: see `tc_export.graph.tensorrt_operators`."""


class Release(Config):
    """A set of versions that come together on the device."""

    name: str
    cuda: str
    tensorrt: str  # of the flavour that `Toolchain.engine` names
    system: str | None = None

    def __str__(self) -> str:
        system = f"{self.system}, " if self.system else ""
        return f"{self.name} ({system}CUDA {self.cuda}, TensorRT {self.tensorrt})"


def other_releases(target: Target, chosen: Release) -> str:
    """What `--release` takes for this target beside the chosen one, in words; "" for nothing."""
    others = (release for release in target.toolchain.releases if release != chosen)
    return ", ".join(f"{release.tensorrt} ({release.name})" for release in others)


def choose_release(target: Target, wanted: str | None) -> Release | None:
    """The device's software to build for: the newest, or the one that is asked for.

    `wanted` is a release's name, or its TensorRT version. None for a target without any.

    Raises:
        UsageError: the target has no such release.
    """
    releases = target.toolchain.releases
    if wanted is None:
        return releases[-1] if releases else None
    for release in releases:
        if wanted.lower() in (release.name.lower(), release.tensorrt):
            return release
    known = ", ".join(f"{release.name!r} (TensorRT {release.tensorrt})" for release in releases)
    raise UsageError(
        f"{target.name} has no release {wanted!r}",
        hint=f"known: {known}" if releases else "leave --release out: this target has none",
    )
