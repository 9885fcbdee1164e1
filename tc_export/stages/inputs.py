# SPDX-License-Identifier: Apache-2.0
"""What every stage of a build is given: the checkpoint, the device, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tc_export.bundle import BundleSpec
from tc_export.bundle.layout import plugin_path
from tc_export.checkpoint.reader import Checkpoint
from tc_export.contracts.graph_io import VISION
from tc_export.contracts.parts import EngineGraph, engine_graphs
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
    failure: Path  # the folder for the report of a comparison that fails
    memory_bytes: int | None = None  # that comparing may take; None: two thirds of what is free

    @property
    def plugin_library(self) -> str:
        """The plugin library's place in the bundle."""
        return plugin_path(self.target.toolchain.architecture, self.target.sm)

    def precision(self, graph: str) -> Precision:
        """The number format of one graph."""
        precision: Precision = getattr(self.precisions, graph)
        return precision

    @property
    def engine_graphs(self) -> tuple[EngineGraph, ...]:
        """What becomes an engine each."""
        layers = self.checkpoint.config.model.text.num_hidden_layers
        return engine_graphs(layers, self.spec.decoder_parts)

    @property
    def decoder_parts(self) -> tuple[EngineGraph, ...]:
        """Those that are parts of the decoder; none where it is built as a whole."""
        return tuple(each for each in self.engine_graphs if each.part is not None)

    def shapes(self, each: EngineGraph) -> dict[str, ShapeRange]:
        """The shapes that one engine is built for."""
        config, profile = self.checkpoint.config.model, self.spec.profile
        if each.graph == VISION:
            return vision_shapes(config, profile.max_frames)
        layers = None if each.part is None else each.part.layers
        return decoder_shapes(config, profile.max_length, layers)
