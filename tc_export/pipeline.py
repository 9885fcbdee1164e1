# SPDX-License-Identifier: Apache-2.0
"""The whole build as one ordered list of stages: read this first.

Stages meet through files in the bundle under construction, and through nothing else. A stage runs
again only when something that its result depends on has changed; a killed build resumes. What a
stage does is in `build_stages`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tc_export.bundle import Description, Manifest, Profile, open_staging, verify
from tc_export.bundle.layout import EMBEDDING_FILE, engine_path, engine_stage
from tc_export.checkpoint.hf_config import read_config
from tc_export.checkpoint.reader import Checkpoint, open_checkpoint
from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import DECODER, GRAPHS, VISION
from tc_export.errors import EnvironmentLacks, UsageError
from tc_export.native.build import check_cuda, library_key
from tc_export.plan.build_cost import build_cost
from tc_export.plan.planner import profile_length
from tc_export.runner import Reporter, Stage, is_up_to_date, run_stages
from tc_export.stages import bodies as build_stages
from tc_export.stages.bodies import Recipe
from tc_export.targets import (
    Precisions,
    Release,
    Target,
    choose_release,
    load_target,
    read_precisions,
)

DEFAULT_MAX_FRAMES = 16
PLUGIN_HEAD_SIZES = (64, 80, 96, 128, 256)
"""Head sizes that the CUDA attention kernel is compiled for (plugins/kernels)."""

TOKENIZER_READERS = ("transformers", "tokenizers")
EXPORTERS = ("tc-export", "torch", "onnx", "onnx-ir", "onnxscript")
RUNNERS = ("tc-export", "onnxruntime")
RTX_BUILDER = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What the user asks for. `max_length` is in tokens; None takes a default."""

    checkpoint: Path
    output: Path
    target: str = "cpu"
    precision: str | None = None
    release: str | None = None
    max_frames: int = DEFAULT_MAX_FRAMES
    max_length: int | None = None
    temporal: Mapping[str, Any] = field(default_factory=dict)
    check_parity: bool = True
    jobs: int = 1


def build(
    request: BuildRequest,
    reporter: Reporter,
    on_opened: Callable[[Checkpoint, Profile], None] = lambda checkpoint, profile: None,
) -> Manifest:
    """Build a bundle, or bring an existing one up to date.

    `on_opened` is called once the checkpoint has been read and found whole.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        UsageError: the request cannot be fulfilled as it stands.
        EnvironmentLacks: this machine cannot make what is asked for.
        CheckFailed: the engine does not compute what PyTorch computes; nothing is published.
    """
    target, precisions, release, profile = _checked(request)
    checkpoint = open_checkpoint(request.checkpoint, request.temporal)
    _check_mask(checkpoint.config.model, target)
    on_opened(checkpoint, profile)
    with open_staging(request.output) as staging:
        recipe = Recipe(
            checkpoint=checkpoint,
            description=Description(
                target=target.name,
                checkpoint_digest=checkpoint.digest(partial(reporter.read, "the checkpoint")),
                profile=profile,
                precision_asked=precisions.model_dump(mode="json"),
                tools=versions({*EXPORTERS, *RUNNERS}),
            ),
            target=target,
            release=release,
            precisions=precisions,
        )
        stages = plan_stages(recipe, check_parity=request.check_parity)
        published = staging.published
        is_kept = published and is_finished(published) and is_up_to_date(published, stages)
        read = partial(reporter.read, "the bundle")
        if published and is_kept and not verify(staging.output, read):
            reporter.planned(stages)
            for stage in stages:
                reporter.skipped(stage)
            return published
        return run_stages(staging, stages, recipe.description, reporter, jobs=request.jobs)


def is_finished(manifest: Manifest) -> bool:
    """True where the device has added its engines, which a build here could only take away."""
    stages = manifest.stages
    return "finish" in stages and all(engine_stage(graph) in stages for graph in GRAPHS)


Build = Callable[[Reporter, Callable[[Checkpoint, Profile], None]], Manifest]


def build_each(request: BuildRequest, targets: Sequence[str]) -> list[tuple[Path, Build]]:
    """The bundle's place and the build of each target: one at `request.output`, several below it.

    Nothing is built yet; but every target has been found possible.

    Raises:
        UsageError: a target, or what is asked for it, cannot be.
        EnvironmentLacks: this machine cannot make what is asked for.
    """
    requests = [replace(request, target=name) for name in targets]
    names = [_checked(each)[0].name for each in requests]
    if len(set(names)) < len(names):
        raise UsageError(f"a target is named twice: {', '.join(names)}")
    if len(names) > 1:
        requests = [
            replace(each, output=request.output / name)
            for each, name in zip(requests, names, strict=True)
        ]
        request.output.mkdir(exist_ok=True)
    return [(each.output, partial(build, each)) for each in requests]


def choose_profile(config: ModelConfig, max_frames: int, max_length: int | None) -> Profile:
    """The largest input that the engines shall take.

    Raises:
        UsageError: the frames do not fit the length, or the length exceeds the model's context.
    """
    length = profile_length(config, max_frames, max_length)
    return Profile(max_frames=max_frames, max_length=length)


def _checked(request: BuildRequest) -> tuple[Target, Precisions, Release | None, Profile]:
    """What the request asks for, if it can be; no weight has been read yet."""
    target = load_target(request.target)
    precisions = read_precisions(request.precision, target)
    release = choose_release(target, request.release)
    config = read_config(request.checkpoint).model
    profile = choose_profile(config, request.max_frames, request.max_length)
    check_possible(config, target, precisions, check_parity=request.check_parity)
    return target, precisions, release, profile


def check_possible(
    config: ModelConfig, target: Target, precisions: Precisions, *, check_parity: bool
) -> None:
    """Refuse, before any work, what cannot end well on this machine or on the device.

    Raises:
        UsageError: the device's kernels do not have the model's head size.
        EnvironmentLacks: a step of the build needs more memory than this machine has.
    """
    head_size = config.text.head_dim
    if target.sm is not None and head_size not in PLUGIN_HEAD_SIZES:
        raise UsageError(
            f"the decoder's heads have {head_size} channels, and the CUDA kernels know "
            f"{', '.join(map(str, PLUGIN_HEAD_SIZES))}",
            hint="--target cpu runs any head size",
        )
    if target.toolchain.engine == "tensorrt-rtx":
        _check_installed(RTX_BUILDER, "rtx")
    cost = build_cost(config, target, precisions)
    steps = {
        step: nbytes
        for step, nbytes in cost.peak_by_step.items()
        if check_parity or step != "parity"
    }
    worst = max(steps, key=lambda step: steps[step])
    if cost.host_bytes is not None and steps[worst] > cost.host_bytes:
        raise EnvironmentLacks(
            f"the build's step {worst!r} would take {steps[worst] / 1e9:.1f} GB of memory, and "
            f"this machine has {cost.host_bytes / 1e9:.1f} GB",
            hint="--no-parity leaves the comparison with PyTorch out"
            if worst == "parity"
            else "build on a larger machine; tc-export plan shows every step",
        )


def _check_mask(config: ModelConfig, target: Target) -> None:
    if target.sm is not None and not config.temporal.mask.is_prefix:
        raise UsageError(
            f"the mask {config.temporal.mask} is no prefix of the keys, which the plugins need",
            hint="it is there for comparisons: use --target cpu",
        )


def plan_stages(recipe: Recipe, *, check_parity: bool) -> list[Stage]:
    """The build for the recipe's target, in order."""
    stages = [*_common_stages(recipe)]
    if recipe.target.toolchain.engine == "onnxruntime":
        stages.append(
            Stage(
                name="engine",
                description="load the engines",
                key={"tools": versions(RUNNERS)},
                outputs=(),
                needs=(VISION, DECODER),
                run=build_stages.load_onnxruntime,
            )
        )
    else:
        stages += _tensorrt_stages(recipe)
    if check_parity:
        stages.append(
            Stage(
                name="parity",
                description="compare with PyTorch",
                key={
                    "profile": recipe.description.profile.model_dump(),
                    "tools": versions({*RUNNERS, "torch"}),
                },
                outputs=("parity",),
                needs=(VISION, DECODER),
                run=partial(build_stages.check_parity, recipe=recipe),
            )
        )
    return stages


def _common_stages(recipe: Recipe) -> Iterable[Stage]:
    """What every target needs."""
    checkpoint = recipe.checkpoint
    digest = recipe.description.checkpoint_digest
    exported = {"checkpoint": digest, "tools": versions(EXPORTERS)}
    yield Stage(
        name="weights",
        description="check the weights",
        key={"checkpoint": digest},
        outputs=(),
        run=lambda context: checkpoint.check_values(context.advance),
    )
    yield Stage(
        name="assets",
        description="copy configuration and tokenizer",
        key={
            "config": build_stages.bundle_config(recipe),
            "files": build_stages.assets(checkpoint),
            "tools": versions(TOKENIZER_READERS),
        },
        outputs=build_stages.bundled_files(checkpoint),
        run=partial(build_stages.write_assets, recipe=recipe),
    )
    yield Stage(
        name="embedding",
        description="write the token embedding",
        key=exported | {"precision": recipe.precisions.decoder},
        outputs=(EMBEDDING_FILE,),
        run=partial(build_stages.write_embedding, recipe=recipe),
    )
    for graph in GRAPHS:
        yield Stage(
            name=graph,
            description=f"export the {graph} graph",
            key=exported | {"precision": recipe.precision(graph)},
            outputs=(graph,),
            run=partial(build_stages.export_graph, recipe=recipe, graph=graph),
        )


def _tensorrt_stages(recipe: Recipe) -> Iterable[Stage]:
    """The plugins, and the engines or what the device needs to build them."""
    target = recipe.target
    assert recipe.release is not None
    check_cuda(recipe.release)
    yield Stage(
        name="plugins",
        description=f"compile the plugins for SM {target.sm}",
        key={"library": library_key(target)},
        outputs=(recipe.plugins,),
        run=partial(build_stages.compile_plugins, recipe=recipe),
        apart=True,
    )
    if target.toolchain.engine == "tensorrt-rtx":
        yield from _engine_stages(recipe)
    else:
        yield from _finish_stages(recipe)


def _engine_stages(recipe: Recipe) -> Iterable[Stage]:
    """Engines that are built here, without the device."""
    for graph in GRAPHS:
        yield Stage(
            name=engine_stage(graph),
            description=f"build the {graph} engine",
            key={
                "sm": recipe.target.sm,
                "precision": recipe.precision(graph),
                "profile": recipe.description.profile.model_dump(),
                "tools": versions(("tc-export", *RTX_BUILDER)),
            },
            outputs=(engine_path(graph),),
            needs=(graph, "plugins"),
            run=partial(build_stages.build_tensorrt_engine, recipe=recipe, graph=graph),
            apart=True,
        )


def _finish_stages(recipe: Recipe) -> Iterable[Stage]:
    """What the device needs to build its engines itself, and to judge them."""
    assert recipe.release is not None
    key = {"tensorrt": recipe.release.tensorrt, "tools": versions(EXPORTERS)}
    for graph in GRAPHS:
        yield Stage(
            name=f"{graph}_tensorrt",
            description=f"write the {graph} graph for TensorRT {recipe.release.tensorrt}",
            key=key,
            outputs=(f"tensorrt/{graph}",),
            needs=(graph,),
            run=partial(build_stages.write_device_form, recipe=recipe, graph=graph),
        )
    yield Stage(
        name="finish",
        description="write golden data, and the script for the device",
        key=key
        | {
            "target": recipe.target.name,
            "precision": recipe.description.precision_asked,
            "profile": recipe.description.profile.model_dump(),
        },
        outputs=("finish",),
        needs=("plugins", *(f"{graph}_tensorrt" for graph in GRAPHS)),
        run=partial(build_stages.prepare_finish, recipe=recipe),
    )


def _check_installed(packages: Iterable[str], extra: str) -> None:
    try:
        versions(packages)
    except PackageNotFoundError as error:
        raise EnvironmentLacks(
            f"the package {error.name} is not installed, which builds this target's engines",
            hint=f"pip install 'tc-export[{extra}]'",
        ) from error


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed version of each package."""
    return {name: version(name) for name in sorted(packages)}
