# SPDX-License-Identifier: Apache-2.0
"""Arguments and options of the command line that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tc_export.bundle.placement import Placement
from tc_export.cli.settings.schema import option_help
from tc_export.config import AfterClip, AttentionMask, KvFormat, PoolingMode, VisionFeatures


def complete_target(incomplete: str) -> list[str]:
    """The shipped targets that begin so, for the shell's completion."""
    from tc_export.targets import list_targets

    return [target.name for target in list_targets() if target.name.startswith(incomplete)]


BundleArgument = Annotated[Path, typer.Argument(help="Folder that `tc-export build` wrote.")]
TargetOption = Annotated[
    str,
    typer.Option(help="Device, or the path of a target's file.", autocompletion=complete_target),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="File of settings. By default the nearest tc-export.toml, here or in a folder above.",
        show_default=False,
    ),
]


def _setting(key: str, *names: str, **limits: Any) -> Any:
    """The option of a setting: one that is not given leaves it to the file, or to the default."""
    return typer.Option(*names, help=option_help(key), show_default=False, **limits)


CheckpointOption = Annotated[Path | None, _setting("checkpoint")]
OutputOption = Annotated[Path | None, _setting("output")]
TargetsOption = Annotated[
    list[str] | None, _setting("target", "--target", autocompletion=complete_target)
]
OneTargetOption = Annotated[
    str | None, _setting("target", "--target", autocompletion=complete_target)
]
PrecisionOption = Annotated[str | None, _setting("precision")]
QuantizeOption = Annotated[str | None, _setting("quantize")]
ReleaseOption = Annotated[str | None, _setting("release")]
MaxFramesOption = Annotated[int | None, _setting("profile.max_frames", min=1)]
FramesOption = Annotated[int | None, _setting("profile.max_frames", "--frames", min=1)]
MaxLengthOption = Annotated[int | None, _setting("profile.max_length", min=2)]
GammaOption = Annotated[float | None, _setting("temporal.gamma", min=0)]
MaskOption = Annotated[AttentionMask | None, _setting("temporal.mask")]
AfterClipOption = Annotated[AfterClip | None, _setting("temporal.after_clip")]
PoolingStrideOption = Annotated[int | None, _setting("pooling.stride", "--pooling-stride", min=1)]
PoolingModeOption = Annotated[PoolingMode | None, _setting("pooling.mode", "--pooling-mode")]
VisionFeaturesOption = Annotated[
    VisionFeatures | None, _setting("vision.features", "--vision-features")
]
KvOption = Annotated[KvFormat | None, _setting("cache.kv", "--kv")]
WeightsOption = Annotated[Placement | None, _setting("build.weights", "--weights")]
ParityOption = Annotated[bool | None, _setting("build.parity", "--parity/--no-parity")]
MemoryOption = Annotated[float | None, _setting("build.memory", "--memory", min=0)]
PartsOption = Annotated[str | None, _setting("build.parts", "--parts", metavar="N|auto")]
JobsOption = Annotated[int | None, _setting("build.jobs", min=1)]

NativeOption = Annotated[
    bool | None,
    typer.Option(
        "--native/--no-native",
        help="Demand our native library, or leave it out. By default it is used if it is there.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads; one for each core if left out.", show_default=False),
]
