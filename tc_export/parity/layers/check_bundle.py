# SPDX-License-Identifier: Apache-2.0
"""Compares a bundle's graphs layer by layer with the checkpoint in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tc_export.bundle import Profile
from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.reader import Checkpoint
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.dtypes import DType
from tc_export.engine.loading import ONNX_RUNTIME, choose_native_library
from tc_export.graph.parts import cut_layers
from tc_export.parity.graph_opener import GraphOpener
from tc_export.parity.judged_bundle import open_with_checkpoint
from tc_export.parity.layers.cells import Cells
from tc_export.parity.layers.check import Advance, Arithmetic, Judges, Sweep, judge_head
from tc_export.parity.layers.culprit import Evidence, find_culprit
from tc_export.parity.layers.result import ByLayerResult, Measured
from tc_export.parity.layers.sequences import layer_sequences, places_of
from tc_export.parity.layers.vision import embedded, judge_vision
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.plan.build_memory import memory_limits
from tc_export.targets import Precisions

ENGINES_SHOW_NO_LAYERS = (
    "an engine of TensorRT shows no layers: the graphs that it was built from are judged, in ONNX "
    "Runtime"
)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Graphs that are to be judged.

    Attributes:
        folder: holds them as a bundle does.
        checkpoint: that they were made of.
        precisions: of the two graphs.
        profile: the longest sequence that is run.
        native_library: serves the custom ops; None leaves them to their functions.
        threads: of the CPU; None is one for each core.
    """

    folder: Path
    checkpoint: Checkpoint
    precisions: Precisions
    profile: Profile
    native_library: Path | None = None
    threads: int | None = None


def check_bundle_by_layer(
    bundle: Path,
    checkpoint: Path | None = None,
    *,
    graphs: bool = False,
    native: bool | None = None,
    threads: int | None = None,
    memory_bytes: int | None = None,
    advance: Advance = lambda what, done, total: None,
) -> ByLayerResult:
    """Compare the graphs of a published bundle with PyTorch, layer by layer.

    Args:
        bundle: what is judged; for an engine of TensorRT, the graphs that it was built from.
        checkpoint: where that is now; by default where it was at the build.
        graphs: judge the graphs without our native library, as for an engine of another device.
        native: see `load_engines`.
        threads: CPU threads.
        memory_bytes: how much may be used; by default two thirds of what is free.
        advance: called after each layer.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint is gone, or is another one.
        TcExportError: the graph is not one that can be cut into layers.
        UnsupportedEnvironment: the native library that is demanded is not here, the memory does not
            hold a layer, or the profile has no room for a frame.
    """
    manifest, opened = open_with_checkpoint(bundle, checkpoint)
    precisions = Precisions.model_validate(manifest.precision_asked)
    memory_limits(opened.config.model, precisions, memory_bytes, recipe=opened.config.recipe)
    is_engine = manifest.engine is not None and manifest.engine.backend != ONNX_RUNTIME
    judged = Judged(
        folder=bundle,
        checkpoint=opened,
        precisions=precisions,
        profile=manifest.profile,
        native_library=choose_native_library(False if is_engine or graphs else native),
        threads=threads,
    )
    return check_by_layer(judged, advance, (ENGINES_SHOW_NO_LAYERS,) if is_engine else ())


def check_by_layer(
    judged: Judged,
    advance: Advance = lambda what, done, total: None,
    notes: tuple[str, ...] = (),
) -> ByLayerResult:
    """Compare graphs with PyTorch, layer by layer; see `check_bundle_by_layer`."""
    vision_judges, judges = judges_of(judged, VISION), judges_of(judged, DECODER)
    evidence = _gather(judged, vision_judges, judges, advance)
    return ByLayerResult(
        judged=_title(judged),
        truth=judges.truth.name,
        precision=str(judged.precisions),
        layers=tuple(range(len(evidence.layers))),
        places=tuple(evidence.places),
        isolated=tuple(evidence.isolated),
        accumulated=tuple(evidence.accumulated),
        vision=tuple(evidence.vision),
        head=tuple(evidence.head),
        culprit=find_culprit(vision_judges, judges, evidence),
        notes=notes,
    )


def _gather(judged: Judged, vision_judges: Judges, judges: Judges, advance: Advance) -> Evidence:
    """Measure the vision graph, every layer, and the head."""
    config, profile = judged.checkpoint.config.model, judged.profile
    sequences = layer_sequences(config, profile.max_frames, profile.max_length)
    places = places_of(sequences)
    advance("vision", 0, config.text.num_hidden_layers)
    vision = judge_vision(vision_judges, sequences, places)
    layers, head = cut_layers(judged.folder / graph_path(DECODER), config)
    swept = Sweep(judges, layers, sequences, places, advance).run(
        embedded(judges, sequences, vision.features)
    )
    return Evidence(
        isolated=_measured(swept.isolated.values()),
        accumulated=swept.accumulated.measured(),
        vision=_measured(vision.cells),
        head=_measured(judge_head(judges, head, sequences, places, swept.last)),
        places=places,
        layers=layers,
        last=head,
        sequences=sequences,
        suspect=swept.suspect,
        inputs=swept.inputs,
        last_inputs=swept.last,
    )


def judges_of(judged: Judged, graph: str) -> Judges:
    """What one of the two graphs is judged by.

    Inputs of products are not rounded on either side: see `graph.passes.inputs_as_they_are`.
    """
    dtype = (judged.precisions.vision if graph == VISION else judged.precisions.decoder).dtype
    path, weights = judged.folder / graph_path(graph), judged.precisions

    rounds = bool(judged.checkpoint.input_roundings())

    def arithmetic(results: DType, *, unrounded: bool) -> Arithmetic:
        opener = GraphOpener(
            path=path,
            dtype=dtype,
            unrounded=unrounded,
            inputs_as_they_are=rounds,
            native_library=judged.native_library,
            threads=judged.threads,
        )
        model = layerwise(results, weights)
        return Arithmetic(dtype=results, opener=opener, model=model)

    def layerwise(results: DType, weights: Precisions | None) -> LayerwiseModel:
        return LayerwiseModel(judged.checkpoint, results, weights=weights, rounds_inputs=False)

    is_wide = dtype is DType.FLOAT32
    return Judges(
        truth=layerwise(DType.FLOAT64, None),
        rounded=layerwise(DType.FLOAT64, weights),
        own=arithmetic(dtype, unrounded=False),
        unrounded=None if is_wide else arithmetic(DType.FLOAT32, unrounded=True),
        format=dtype,
    )


def _measured(cells: Iterable[Cells]) -> tuple[Measured, ...]:
    return tuple(measured for x in cells for measured in x.measured())


def _title(judged: Judged) -> str:
    library = ", with our native library" if judged.native_library else ""
    return f"graphs of {judged.folder.name} in ONNX Runtime{library}"
