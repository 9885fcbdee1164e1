# SPDX-License-Identifier: Apache-2.0
"""`tc-export build`: a checkpoint to a bundle of engines."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tc_export.cli.failure import INTERRUPTED
from tc_export.cli.finish import finish_if_here, print_bundle
from tc_export.cli.options import (
    AfterClipOption,
    CheckpointOption,
    ConfigOption,
    GammaOption,
    JobsOption,
    KvOption,
    MaskOption,
    MaxFramesOption,
    MaxLengthOption,
    MemoryOption,
    OutputOption,
    ParityOption,
    PartsOption,
    PoolingModeOption,
    PoolingStrideOption,
    PrecisionOption,
    QuantizeOption,
    ReleaseOption,
    TargetsOption,
    VisionFeaturesOption,
    WeightsOption,
)
from tc_export.cli.terminal import Terminal
from tc_export.errors import UsageError

if TYPE_CHECKING:
    from tc_export.bundle import Profile
    from tc_export.checkpoint.reader import Checkpoint
    from tc_export.cli.settings.choose import ChosenSettings
    from tc_export.targets import Release, Target

app = typer.Typer()


@app.command(epilog="Example: tc-export build --checkpoint llava-1.5-7b-hf --target orin")
def build(
    checkpoint: CheckpointOption = None,
    output: OutputOption = None,
    target: TargetsOption = None,
    config: ConfigOption = None,
    precision: PrecisionOption = None,
    quantize: QuantizeOption = None,
    release: ReleaseOption = None,
    max_frames: MaxFramesOption = None,
    max_length: MaxLengthOption = None,
    gamma: GammaOption = None,
    mask: MaskOption = None,
    after_clip: AfterClipOption = None,
    pooling_stride: PoolingStrideOption = None,
    pooling_mode: PoolingModeOption = None,
    vision_features: VisionFeaturesOption = None,
    kv: KvOption = None,
    weights: WeightsOption = None,
    parity: ParityOption = None,
    memory: MemoryOption = None,
    parts: PartsOption = None,
    jobs: JobsOption = None,
) -> None:
    """Make a bundle of engines from a checkpoint, and check it against PyTorch.

    What no flag says is read from a tc-export.toml in the working folder or above it; `tc-export
    init` writes one. A killed build resumes where it was; a finished one does again only what has
    changed.
    """
    from tc_export.cli.settings.choose import choose_settings

    flags = {
        "checkpoint": checkpoint,
        "output": output,
        "target": target,
        "precision": precision,
        "quantize": quantize,
        "release": release,
        "profile.max_frames": max_frames,
        "profile.max_length": max_length,
        "temporal.gamma": gamma,
        "temporal.mask": mask,
        "temporal.after_clip": after_clip,
        "pooling.stride": pooling_stride,
        "pooling.mode": pooling_mode,
        "vision.features": vision_features,
        "cache.kv": kv,
        "build.weights": weights,
        "build.parity": parity,
        "build.memory": memory,
        "build.parts": parts,
        "build.jobs": jobs,
    }
    chosen = choose_settings(flags, config)
    with chosen.named_in_errors():
        _refuse_early(chosen)
        _build(chosen)


def _build(chosen: ChosenSettings) -> None:
    from tc_export.pipeline import BuildRequest, build_each
    from tc_export.runner import RichReporter

    values = chosen.values
    memory = values.build.memory
    request = BuildRequest(
        checkpoint=chosen.checkpoint,
        output=chosen.output,
        precision=values.precision,
        quantize=values.quantize,
        release=values.release,
        max_frames=values.profile.max_frames,
        max_length=values.profile.max_length,
        settings=chosen.model,
        check_parity=values.build.parity,
        jobs=values.build.jobs,
        memory_bytes=None if memory is None else round(memory * 1e9),
        parts=None if values.build.parts == "auto" else values.build.parts,
        weights=values.build.weights,
    )
    builds = build_each(request, values.target, chosen.place)
    if chosen.place is not None:
        _make_folder(chosen.output)
    try:
        for target, (bundle, build_one) in zip(values.target, builds, strict=True):
            with RichReporter(Terminal(stderr=True, markup=True)) as reporter:
                manifest = build_one(reporter, partial(_print_settings, chosen, target, bundle))
            print_bundle(bundle, finish_if_here(bundle, manifest))
    except KeyboardInterrupt as interrupt:  # it says what is kept; typer would drop that
        Terminal(stderr=True).print(str(interrupt))
        raise typer.Exit(INTERRUPTED) from None


def _refuse_early(chosen: ChosenSettings) -> None:
    """Refuse what can be seen to be wrong before PyTorch is loaded, which takes seconds.

    The pipeline checks all of it again, and more.
    """
    from tc_export.checkpoint.hf_config import read_config
    from tc_export.plan.planner import profile_length
    from tc_export.targets import choose_release, load_target, read_precisions

    values = chosen.values
    for name in values.target:
        device = load_target(name)
        read_precisions(values.precision, device)
        release = choose_release(device, values.release)
        if release is not None:
            _print_release(device, release)
    read = read_config(chosen.checkpoint, chosen.model)
    if read.packing is not None and read.recipe is not None and values.quantize is None:
        Terminal(stderr=True).print(f"{chosen.checkpoint}: {read.packing.account}")
    profile_length(read.model, values.profile.max_frames, values.profile.max_length)


def _make_folder(folder: Path) -> None:
    """Make the folder that bundles go to where no output is given."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the folder {folder} cannot be made: {error.strerror}",
            hint="name another place for the bundle: --output DIR",
        ) from error


def _print_release(target: Target, release: Release) -> None:
    from tc_export.targets import other_releases

    others = other_releases(target, release)
    also = f"; --release also takes {others}" if others else ""
    Terminal(stderr=True).print(f"{target.name}: builds for {release}{also}")


def _print_settings(
    chosen: ChosenSettings, target: str, bundle: Path, checkpoint: Checkpoint, profile: Profile
) -> None:
    from tc_export.cli.settings.table import settings_table
    from tc_export.targets import choose_release, load_target, read_precisions

    device = load_target(target)
    release = choose_release(device, chosen.values.release)
    in_effect: dict[str, Any] = {
        "checkpoint": checkpoint.folder,
        "output": bundle,
        "target": device.name,
        "precision": read_precisions(chosen.values.precision, device),
        **({"release": release.name} if release else {}),
        "profile.max_frames": profile.max_frames,
        "profile.max_length": profile.max_length,
    }
    Terminal(stderr=True).print(settings_table(chosen, in_effect, checkpoint.config))
