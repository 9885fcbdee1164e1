# SPDX-License-Identifier: Apache-2.0
"""What every stage of a build is given: the checkpoint, the device, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from tc_export.bundle import BundleSpec
from tc_export.bundle.layout import plugin_path
from tc_export.checkpoint.reader import Checkpoint
from tc_export.contracts.graph_io import VISION
from tc_export.contracts.shapes import ShapeRange, decoder_shapes, vision_shapes
from tc_export.targets import Precision, Precisions, Release, Target


@dataclass(frozen=True, kw_only=True)
class BuildInputs:
    """All that a build's stages are given.

    What a stage reads of it belongs in its key, or in that of a stage that it needs.
    """

    checkpoint: Checkpoint
    spec: BundleSpec
    target: Target
    release: Release | None  # of the device's software; None for the CPU
    precisions: Precisions
    memory_bytes: int | None = None  # that comparing may take; None: two thirds of what is free

    @property
    def plugin_library(self) -> str:
        """The plugin library's place in the bundle."""
        return plugin_path(self.target.toolchain.architecture, self.target.sm)

    def precision(self, graph: str) -> Precision:
        """The number format of one graph."""
        precision: Precision = getattr(self.precisions, graph)
        return precision

    def shapes(self, graph: str) -> dict[str, ShapeRange]:
        """The shapes that one engine is built for."""
        config, profile = self.checkpoint.config.model, self.spec.profile
        if graph == VISION:
            return vision_shapes(config, profile.max_frames)
        return decoder_shapes(config, profile.max_length)
