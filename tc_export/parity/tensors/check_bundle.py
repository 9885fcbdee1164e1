# SPDX-License-Identifier: Apache-2.0
"""Compares a bundle's engine, or its graphs, tensor by tensor with the checkpoint in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tc_export.bundle import Profile
from tc_export.checkpoint.reader import Checkpoint
from tc_export.config import ModelConfig
from tc_export.contracts.parts import Part
from tc_export.dtypes import DType
from tc_export.engine.loading import ONNX_RUNTIME
from tc_export.parity.assets.check import compare_assets
from tc_export.parity.graph_engines import GraphsInTurn
from tc_export.parity.judged_bundle import open_with_checkpoint
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.tensors.check import ReferenceSides, check_parity, count_steps
from tc_export.parity.tensors.result import ParityResult
from tc_export.parity.tensors.scenario import standard_scenarios
from tc_export.parity.tensors.sides import JudgedSide, OpenSide, TorchSide
from tc_export.plan.build_memory import memory_limits
from tc_export.plan.parameters import decoder_count
from tc_export.runtime.answering import open_engines
from tc_export.targets import Precision, Precisions

DRAWS, DRAWS_OF_LARGE = 6, 3
"""Runs of PyTorch that noise is measured by. A run of a large model takes minutes, and it has so
many tokens and directions that fewer tell as much."""

LARGE = 1_500_000_000
"""Weights of the decoder from which a model is large."""


def check_bundle(
    bundle: Path,
    checkpoint: Path | None = None,
    *,
    graphs: bool = False,
    native: bool | None = None,
    threads: int | None = None,
    memory_bytes: int | None = None,
    advance: Callable[[float, float | None], None] = lambda done, total: None,
) -> ParityResult:
    """Compare a published bundle with the PyTorch model that it was built from.

    Args:
        bundle: what is judged.
        checkpoint: where that is now; by default where it was at the build.
        graphs: judge the exported graphs in ONNX Runtime, and not the engine.
        native: see `load_engines`.
        threads: CPU threads of each engine.
        memory_bytes: how much may be used; by default two thirds of what is free.
        advance: called with the steps that are done, and how many there are.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint is gone, or is another one.
        UnsupportedEnvironment: this machine cannot run the engine, or the memory does not hold a
            layer.
    """
    manifest, opened = open_with_checkpoint(bundle, checkpoint)
    precisions = Precisions.model_validate(manifest.precision_asked)
    config = opened.config.model
    limits = memory_limits(
        config, precisions, memory_bytes, manifest.profile.max_length, opened.config.recipe
    )
    side: JudgedSide
    in_float32 = None
    if graphs or (manifest.engine is not None and manifest.engine.backend == ONNX_RUNTIME):
        in_float32 = graphs_in_float32(bundle, opened, precisions, limits.parts, threads=threads)
    if graphs:
        side = GraphsInTurn(bundle, config, precisions, limits.parts, threads=threads)
    else:
        engines = open_engines(bundle, manifest, native=native, threads=threads)
        side = OpenSide(engines.decoder.backend, engines.vision, engines.decoder)
    return compare_with_pytorch(
        side,
        opened,
        manifest.profile,
        precisions,
        bundle=bundle,
        in_float32=in_float32,
        answer_bytes=limits.answer_bytes,
        advance=advance,
    )


def graphs_in_float32(
    folder: Path,
    checkpoint: Checkpoint,
    precisions: Precisions,
    parts: Sequence[Part],
    *,
    threads: int | None = None,
) -> GraphsInTurn | None:
    """The graphs with their arithmetic in float32, and nothing rounded on the way.

    None where they are so anyway.
    """
    config = checkpoint.config.model
    if precisions == Precisions.both(Precision.FLOAT32) and not checkpoint.input_roundings():
        return None
    return GraphsInTurn(folder, config, precisions, parts, in_float32=True, threads=threads)


def compare_with_pytorch(
    engine: JudgedSide,
    checkpoint: Checkpoint,
    profile: Profile,
    precisions: Precisions,
    *,
    bundle: Path,
    in_float32: JudgedSide | None = None,
    answer_bytes: int | None = None,
    advance: Callable[[float, float | None], None] = lambda done, total: None,
) -> ParityResult:
    """Compare the bundle's files, and run every parity scenario that the profile has room for.

    Raises:
        CheckpointError: the embedding table in `bundle` is no safetensors file.
        UnsupportedEnvironment: the profile has no room for any scenario.
    """
    config = checkpoint.config.model
    done = 0

    def step(phrase: str) -> None:
        nonlocal done
        done += 1
        advance(done, count_steps(in_float32) + 1)

    found = compare_assets(bundle, checkpoint, precisions.decoder.dtype)
    step("the bundle's files")
    result = check_parity(
        references(checkpoint, precisions),
        engine,
        precisions,
        standard_scenarios(config, profile.max_frames, profile.max_length),
        in_float32=in_float32,
        answer_bytes=answer_bytes,
        advance=step,
    )
    return replace(result, assets=tuple(found.comparisons), notes=(*result.notes, *found.notes))


def count_draws(config: ModelConfig) -> int:
    """How many draws of PyTorch a model is judged by."""
    return DRAWS if decoder_count(config).matrices < LARGE else DRAWS_OF_LARGE


def references(checkpoint: Checkpoint, precisions: Precisions) -> ReferenceSides:
    """PyTorch in float64, in the formats of both engines, and in float32.

    All have the weights that the engines have; of each a layer is in memory.
    """
    by_format = {
        dtype: LayerwiseModel(checkpoint, dtype, weights=precisions)
        for dtype in {precisions.vision.dtype, precisions.decoder.dtype}
    }

    def unrounded(dtype: DType) -> LayerwiseModel:
        return LayerwiseModel(checkpoint, dtype, weights=precisions, rounds_inputs=False)

    truth = LayerwiseModel(checkpoint, DType.FLOAT64, weights=precisions)
    return ReferenceSides(
        truth=truth,
        unrounded=unrounded(DType.FLOAT64) if checkpoint.input_roundings() else truth,
        baseline=TorchSide(
            vision=by_format[precisions.vision.dtype], decoder=by_format[precisions.decoder.dtype]
        ),
        in_float32=unrounded(DType.FLOAT32),
        draws=count_draws(checkpoint.config.model),
    )
