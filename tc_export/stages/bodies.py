# SPDX-License-Identifier: Apache-2.0
"""What the stages of a build do, one function each. Their order is in `pipeline`.

A stage reads the checkpoint, the recipe and the files of earlier stages, and writes its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tc_export.bundle import Description, EngineBuild, EngineRecord, EngineState, Facts
from tc_export.bundle.layout import (
    EMBEDDING_FILE,
    MODEL_FILE,
    engine_path,
    plugin_path,
    tensorrt_graph,
)
from tc_export.checkpoint.reader import Checkpoint
from tc_export.contracts.graph_io import DECODER, GRAPHS, VISION
from tc_export.contracts.shapes import ShapeRange, decoder_shapes, vision_shapes
from tc_export.device_build.golden import make_golden
from tc_export.device_build.write import PendingEngine, write_finish
from tc_export.dtypes import DType
from tc_export.engine.loading import ONNX_RUNTIME, load_engines
from tc_export.engine.tensorrt.build import EngineRequest, build_engine
from tc_export.errors import CheckFailed, TcExportError
from tc_export.graph.export import GraphReport, export_decoder, export_embedding, export_vision
from tc_export.graph.passes.tensorrt_form import to_tensorrt_form
from tc_export.native.build import build_plugins
from tc_export.parity.graph_engines import GraphsInTurn
from tc_export.parity.of_bundle import compare_with_pytorch, references
from tc_export.parity.tensors.report import failures, write_report
from tc_export.plan.build_memory import memory_limits
from tc_export.runner import StageContext
from tc_export.targets import Precision, Precisions, Release, Target

ASSETS = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of a checkpoint that a bundle carries unchanged, as far as they are there."""

Exporter = Callable[[Checkpoint, DType, Path, Callable[[int], None]], GraphReport]
EXPORTERS: dict[str, Exporter] = {VISION: export_vision, DECODER: export_decoder}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a build's stages are given."""

    checkpoint: Checkpoint
    description: Description
    target: Target
    release: Release | None  # of the device's software; None for the CPU
    precisions: Precisions
    memory_bytes: int | None = None  # that comparing may take; None: two thirds of what is free

    @property
    def plugins(self) -> str:
        """The plugin library's place in the bundle."""
        return plugin_path(self.target.toolchain.architecture, self.target.sm)

    def precision(self, graph: str) -> Precision:
        """The number format of one graph."""
        precision: Precision = getattr(self.precisions, graph)
        return precision

    def shapes(self, graph: str) -> dict[str, ShapeRange]:
        """The shapes that one engine is built for."""
        config, profile = self.checkpoint.config.model, self.description.profile
        if graph == VISION:
            return vision_shapes(config, profile.max_frames)
        return decoder_shapes(config, profile.max_length)


def assets(checkpoint: Checkpoint) -> dict[str, str]:
    """The checkpoint's small files, and their hashes."""
    paths = [checkpoint.folder / name for name in ASSETS]
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def bundle_config(recipe: Recipe) -> dict[str, Any]:
    """The checkpoint's `config.json`, with every setting that was left to us."""
    checkpoint, description = recipe.checkpoint, recipe.description
    model = checkpoint.config.model
    return {
        **checkpoint.config.document,
        "temporal": model.temporal.model_dump(mode="json"),
        "pooling": model.pooling.model_dump(mode="json"),
        "builder_config": {
            "target": description.target,
            "checkpoint": str(checkpoint.folder.resolve()),
            "precision": description.precision_asked,
            **description.profile.model_dump(),
        },
    }


def write_assets(context: StageContext, recipe: Recipe) -> None:
    """Copy the small files, and write the bundle's `config.json`."""
    for name in assets(recipe.checkpoint):
        shutil.copyfile(recipe.checkpoint.folder / name, context.path(name))
    text = json.dumps(bundle_config(recipe), indent=2) + "\n"
    context.path("config.json").write_text(text)


def write_embedding(context: StageContext, recipe: Recipe) -> None:
    """Write the token embedding table."""
    dtype = recipe.precisions.decoder.dtype
    export_embedding(recipe.checkpoint, dtype, context.path(EMBEDDING_FILE))


def export_graph(context: StageContext, recipe: Recipe, graph: str) -> Facts:
    """Write one graph and its weights."""
    folder = context.folder / graph
    folder.mkdir(parents=True)
    tensors = recipe.checkpoint.tensors
    total = sum(x.nbytes for name, x in tensors.items() if name.startswith(f"{graph}."))
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        context.advance(done, total)

    precision = recipe.precision(graph)
    dtype = precision.dtype
    report = EXPORTERS[graph](recipe.checkpoint, dtype, folder, advance)
    return Facts(precision_realised={graph: precision}, custom_nodes={graph: report.custom_nodes})


def compile_plugins(context: StageContext, recipe: Recipe) -> None:
    """Compile the TensorRT plugins for the device, or take them from the cache."""
    library = build_plugins(recipe.target)
    shutil.copyfile(library.path, context.path(recipe.plugins))


def build_tensorrt_engine(context: StageContext, recipe: Recipe, graph: str) -> Facts:
    """Build one engine on this machine."""
    target, precision = recipe.target, recipe.precision(graph)
    assert target.toolchain.engine != "onnxruntime"
    custom_nodes = context.facts.custom_nodes[graph]
    report = build_engine(
        EngineRequest(
            flavour=target.toolchain.engine,
            graph=context.folder / graph / MODEL_FILE,
            engine=context.path(engine_path(graph)),
            plugin_library=context.folder / recipe.plugins if custom_nodes else None,
            shapes=recipe.shapes(graph),
            compute_capability=target.sm,
            custom_nodes=custom_nodes,
            precision=precision,
        ),
        context.advance,
    )
    built = EngineBuild(
        builder=report.tensorrt,
        sm=target.sm,
        precision=report.precision,
        layers=report.layers,
        plugin_layers=dict(report.plugin_layers),
    )
    record = EngineRecord(backend=target.toolchain.engine, state=EngineState.BUILT)
    return Facts(
        precision_realised={graph: report.precision},
        engine_builds={graph: built},
        engine=record if graph == DECODER else None,
    )


def write_device_form(context: StageContext, recipe: Recipe, graph: str) -> None:
    """Write one graph as the TensorRT on the device parses it; its weights are the same files."""
    assert recipe.release is not None
    for file in sorted((context.folder / graph).iterdir()):
        context.link(file, f"tensorrt/{graph}/{file.name}")
    path = context.folder / tensorrt_graph(graph)
    form = to_tensorrt_form(path, path, recipe.release.tensorrt)
    expected = context.facts.custom_nodes[graph]
    if form.custom_nodes != expected:
        raise TcExportError(
            f"the {graph} graph for TensorRT has custom nodes {form.custom_nodes}, and should have "
            f"{expected}"
        )


def prepare_finish(context: StageContext, recipe: Recipe) -> Facts:
    """Write what the device needs to build the engines and to judge them."""
    target, release, profile = recipe.target, recipe.release, recipe.description.profile
    assert release is not None
    assert target.sm is not None
    assert target.toolchain.architecture is not None
    golden = make_golden(
        references(recipe.checkpoint, recipe.precisions),
        recipe.precisions,
        max_frames=profile.max_frames,
        max_length=profile.max_length,
    )
    pending = {
        graph: PendingEngine(
            graph=tensorrt_graph(graph),
            engine=engine_path(graph),
            precision=recipe.precision(graph),
            custom_nodes=context.facts.custom_nodes[graph],
            shapes=recipe.shapes(graph),
            golden=golden[graph],
        )
        for graph in GRAPHS
    }
    write_finish(
        context.folder,
        pending,
        target=target.name,
        tensorrt=release.tensorrt,
        architecture=target.toolchain.architecture,
        sm=target.sm,
        plugin_library=recipe.plugins,
        digests=context.digests,
    )
    step = "on the device: tc-export finish BUNDLE, or without Python: sh BUNDLE/finish/finish.sh"
    record = EngineRecord(
        backend=target.toolchain.engine, state=EngineState.PENDING, next_step=step
    )
    return Facts(engine=record)


def load_onnxruntime(context: StageContext) -> Facts:
    """Load the graphs as any runtime would, without our library."""
    load_engines(context.folder, {}, native=False)
    return Facts(engine=EngineRecord(backend=ONNX_RUNTIME, state=EngineState.BUILT))


def check_parity(context: StageContext, recipe: Recipe) -> None:
    """Compare the graphs with PyTorch in ONNX Runtime, whatever runs them later.

    Raises:
        CheckFailed: they do not compute what PyTorch computes.
    """
    config = recipe.checkpoint.config.model
    limits = memory_limits(config, recipe.precisions, recipe.memory_bytes)
    result = compare_with_pytorch(
        GraphsInTurn(context.folder, config, recipe.precisions, limits.parts),
        recipe.checkpoint,
        recipe.description.profile,
        recipe.precisions,
        answer_bytes=limits.answer_bytes,
        advance=context.advance,
    )
    folder = context.folder / "parity"
    folder.mkdir()
    write_report(result, folder)
    if not result.passed:
        raise CheckFailed(
            "the engine does not compute what PyTorch computes:\n"
            + "\n".join(f"  {line}" for line in failures(result)),
            hint="nothing was published",
        )
