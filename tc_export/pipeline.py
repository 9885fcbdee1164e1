# SPDX-License-Identifier: Apache-2.0
"""The whole build as one ordered list of stages: read this first, `list_stages` before all.

Stages meet through files in the bundle under construction, and through nothing else. A stage runs
again only when something that its result depends on has changed; a killed build resumes. Each
stage is a file in `tc_export.stages`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tc_export.bundle import BundleSpec, Manifest, Placement, Profile, open_staging
from tc_export.checkpoint.hf_config import read_config
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.checkpoint.tokenizer import check_tokenizer_is_there
from tc_export.config import ModelSettings
from tc_export.contracts.graph_io import GRAPHS
from tc_export.errors import UsageError
from tc_export.plan.build_memory import memory_limits
from tc_export.plan.parts import choose_parts
from tc_export.recipes import Recipe, choose_recipe, settings_with_recipe
from tc_export.runner import Reporter, Stage, run_stages
from tc_export.stages import (
    answering,
    assets,
    decoder_parts,
    device_build,
    device_graphs,
    embedding,
    golden,
    graphs,
    onnxruntime_engine,
    parity,
    plugins,
    readme,
    shards,
    tensorrt_engines,
    weights,
)
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.preflight import check_mask, check_possible, choose_profile
from tc_export.stages.tools import EXPORTERS, RUNNERS, versions
from tc_export.targets import (
    Precisions,
    Release,
    Target,
    choose_release,
    load_target,
    read_precisions,
)


def list_stages(inputs: BuildInputs, *, check_parity: bool) -> list[Stage]:
    """The build for one target, in order."""
    stages = [weights.stage(inputs), shards.stage(inputs)]
    stages += [assets.stage(inputs), answering.stage(inputs)]
    stages += [embedding.stage(inputs)]
    stages += [graphs.stage(inputs, graph) for graph in GRAPHS]
    stages += [golden.stage(inputs)]
    if inputs.decoder_parts:
        stages += [decoder_parts.stage(inputs)]
    match inputs.target.toolchain.engine:
        case "onnxruntime":
            stages += [onnxruntime_engine.stage()]
        case "tensorrt-rtx":
            stages += [plugins.stage(inputs)]
            stages += [tensorrt_engines.stage(inputs, each) for each in inputs.engine_graphs]
        case "tensorrt":
            stages += [plugins.stage(inputs)]
            stages += [device_graphs.stage(inputs, each) for each in inputs.engine_graphs]
            stages += [device_build.stage(inputs)]
    if check_parity:
        stages += [parity.stage(inputs)]
    return [*stages, readme.stage(inputs, has_report=check_parity)]


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What the user asks for. `max_length` is in tokens; None takes a default.

    `quantize` is a recipe, by name or path: the checkpoint is quantised by it first, into a folder
    beside the bundle, `quantized_place`. One that another library has quantised is repacked there.

    `parts` are the engines that the decoder is built as; None takes as few as memory allows.

    `settings` are the model's, as far as the user chose them and the checkpoint leaves them open.
    """

    checkpoint: Path
    output: Path
    target: str = "cpu"
    precision: str | None = None
    release: str | None = None
    max_frames: int = 16
    max_length: int | None = None
    settings: ModelSettings = field(default_factory=ModelSettings)
    check_parity: bool = True
    jobs: int = 1
    memory_bytes: int | None = None
    parts: int | None = None
    quantize: str | None = None
    weights: Placement = Placement.AUTO


OnOpened = Callable[[Checkpoint, Profile], None]  # once the checkpoint is read and found whole
Build = Callable[[Reporter, OnOpened], Manifest]


def build(
    request: BuildRequest,
    reporter: Reporter,
    on_opened: OnOpened = lambda checkpoint, profile: None,
) -> Manifest:
    """Build a bundle, or bring an existing one up to date.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        UsageError: the request cannot be fulfilled as it stands.
        UnsupportedEnvironment: this machine cannot make what is asked for.
        CheckFailed: the engine does not compute what PyTorch computes; nothing is published.
    """
    target, precisions, release, profile, parts = _checked(request)
    checkpoint = open_checkpoint(_quantized(request, reporter), request.settings)
    check_mask(checkpoint.config.model, target)
    on_opened(checkpoint, profile)
    with open_staging(request.output, request.weights) as staging:
        spec = BundleSpec(
            target=target.name,
            release=release,
            checkpoint_digest=checkpoint.digest(partial(reporter.read, "the checkpoint")),
            profile=profile,
            decoder_parts=parts,
            precision_asked=precisions.model_dump(mode="json"),
            weights_asked=request.weights,
            tools=versions({*EXPORTERS, *RUNNERS}),
        )
        inputs = BuildInputs(
            checkpoint=checkpoint,
            spec=spec,
            target=target,
            release=release,
            precisions=precisions,
            failure=staging.output.with_name(f"{staging.output.name}.failed-parity"),
            memory_bytes=request.memory_bytes,
        )
        stages = list_stages(inputs, check_parity=request.check_parity)
        finished = device_build.finished_bundle(staging, stages, reporter)
        return finished or run_stages(staging, stages, spec, reporter, jobs=request.jobs)


def quantized_place(request: BuildRequest, recipe: Recipe) -> Path:
    """Where the quantised checkpoint goes: beside the bundle, so that other targets find it."""
    name = f"{request.checkpoint.resolve().name}-{recipe.name}"
    return request.output.parent / name


def _quantized(request: BuildRequest, reporter: Reporter) -> Path:
    """The checkpoint's folder, or the one that it is quantised or repacked into first."""
    if request.quantize is None and read_config(request.checkpoint).packing is None:
        return request.checkpoint
    from tc_export.quantize.checkpoint import quantize_checkpoint, recipe_for

    opened = open_checkpoint(request.checkpoint)
    recipe = recipe_for(opened, request.quantize)
    verb = "quantise it by" if request.quantize else "repack it as"
    progress = partial(reporter.read, f"the checkpoint, to {verb} {recipe.name}")
    return quantize_checkpoint(opened, recipe, quantized_place(request, recipe), progress).folder


def build_each(
    request: BuildRequest, targets: Sequence[str], place: Callable[[str], Path] | None = None
) -> list[tuple[Path, Build]]:
    """The bundle's place and the build of each target.

    `place` says where the bundle of a target's name goes. Without it that of one target goes to
    `request.output`, and those of several below it. Nothing is built yet; but every target has
    been found possible.

    Raises:
        UsageError: a target, or what is asked for it, cannot be.
        UnsupportedEnvironment: this machine cannot make what is asked for.
    """
    requests = [replace(request, target=name) for name in targets]
    names = [_checked(each)[0].name for each in requests]
    if len(set(names)) < len(names):
        raise UsageError(f"a target is named twice: {', '.join(names)}")
    if place is None and len(names) > 1:
        request.output.mkdir(exist_ok=True)
        place = request.output.joinpath
    if place is not None:
        requests = [
            replace(each, output=place(name)) for each, name in zip(requests, names, strict=True)
        ]
    return [(each.output, partial(build, each)) for each in requests]


def _checked(request: BuildRequest) -> tuple[Target, Precisions, Release | None, Profile, int]:
    """What the request asks for, if it can be, the decoder's parts last; no weight is read yet."""
    target = load_target(request.target)
    precisions = read_precisions(request.precision, target)
    release = choose_release(target, request.release)
    asked = settings_with_recipe(request.settings, request.quantize)
    read = read_config(request.checkpoint, asked)
    config = read.model
    recipe = choose_recipe(request.quantize, read.recipe, target, request.release)
    check_tokenizer_is_there(request.checkpoint)
    profile = choose_profile(config, request.max_frames, request.max_length)
    parts = choose_parts(
        config, target, precisions.decoder, request.parts, request.memory_bytes, recipe
    )
    check_possible(
        config,
        target,
        precisions,
        parts=parts,
        recipe=recipe,
        check_parity=request.check_parity,
    )
    if request.check_parity:
        memory_limits(config, precisions, request.memory_bytes, profile.max_length, recipe)
    return target, precisions, release, profile, parts
