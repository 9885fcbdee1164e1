# SPDX-License-Identifier: Apache-2.0
"""`tc-export build`: a checkpoint to a bundle of engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tc_export.cli.failure import INTERRUPTED
from tc_export.cli.finish import finish_if_here, print_bundle
from tc_export.cli.options import MaxLengthOption, MemoryOption, PrecisionOption, complete_target
from tc_export.cli.terminal import Terminal
from tc_export.config import AfterClip, AttentionMask

if TYPE_CHECKING:
    from tc_export.bundle import Profile
    from tc_export.checkpoint.reader import Checkpoint
    from tc_export.targets import Release, Target

app = typer.Typer()


@app.command(epilog="Example: tc-export build --checkpoint llava-1.5-7b-hf --output out/llava-cpu")
def build(
    checkpoint: Annotated[Path, typer.Option(help="Hugging Face folder of a LLaVA-family model.")],
    output: Annotated[Path, typer.Option(help="Folder to write the bundle to.")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Device, or a target's file; given several times, each gets a bundle of its own "
            "below the output, and what they have in common is made once.  [default: cpu]",
            show_default=False,
            autocompletion=complete_target,
        ),
    ] = None,
    precision: PrecisionOption = None,
    release: Annotated[
        str | None,
        typer.Option(
            help="The device's software, by name or TensorRT version. By default the newest that "
            "the target lists.",
            show_default=False,
        ),
    ] = None,
    max_frames: Annotated[int, typer.Option(min=1, help="Most frames of a question.")] = 16,
    max_length: MaxLengthOption = None,
    gamma: Annotated[
        float | None,
        typer.Option(
            min=0, help="Weight of the temporal position, where the checkpoint states none."
        ),
    ] = None,
    mask: Annotated[
        AttentionMask | None,
        typer.Option(help="What a frame sees of others, where the checkpoint does not say."),
    ] = None,
    after_clip: Annotated[
        AfterClip | None,
        typer.Option(help="Temporal position after a clip, where the checkpoint does not say."),
    ] = None,
    parity: Annotated[
        bool,
        typer.Option(
            help="Compare the graphs with PyTorch in float64, a layer in memory at a time."
        ),
    ] = True,
    memory: MemoryOption = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Stages that may run at once; each takes memory of its own.")
    ] = 1,
) -> None:
    """Make a bundle of engines from a checkpoint, and check it against PyTorch.

    A killed build resumes where it was; a finished one does again only what has changed.
    """
    targets = target or ["cpu"]
    flags = {"gamma": gamma, "mask": mask, "after_clip": after_clip}
    temporal = {name: value for name, value in flags.items() if value is not None}
    _refuse_early(checkpoint, targets, precision, release, max_frames, max_length, temporal)

    from tc_export.pipeline import BuildRequest, build_each
    from tc_export.runner import RichReporter

    request = BuildRequest(
        checkpoint=checkpoint,
        output=output,
        precision=precision,
        release=release,
        max_frames=max_frames,
        max_length=max_length,
        temporal=temporal,
        check_parity=parity,
        jobs=jobs,
        memory_bytes=None if memory is None else round(memory * 1e9),
    )
    try:
        for bundle, build_one in build_each(request, targets):
            with RichReporter(Terminal(stderr=True, markup=True)) as reporter:
                manifest = build_one(reporter, _print_settings)
            print_bundle(bundle, finish_if_here(bundle, manifest))
    except KeyboardInterrupt as interrupt:  # it says what is kept; typer would drop that
        Terminal(stderr=True).print(str(interrupt))
        raise typer.Exit(INTERRUPTED) from None


def _refuse_early(
    checkpoint: Path,
    targets: Sequence[str],
    precision: str | None,
    release: str | None,
    max_frames: int,
    max_length: int | None,
    temporal: dict[str, Any],
) -> None:
    """Refuse what can be seen to be wrong before PyTorch is loaded, which takes seconds.

    The pipeline checks all of it again, and more.
    """
    from tc_export.checkpoint.hf_config import read_config
    from tc_export.plan.planner import profile_length
    from tc_export.targets import choose_release, load_target, read_precisions

    for name in targets:
        device = load_target(name)
        read_precisions(precision, device)
        chosen = choose_release(device, release)
        if chosen is not None:
            _print_release(device, chosen)
    profile_length(read_config(checkpoint, temporal).model, max_frames, max_length)


def _print_release(target: Target, release: Release) -> None:
    from tc_export.targets import other_releases

    others = other_releases(target, release)
    also = f"; --release also takes {others}" if others else ""
    Terminal(stderr=True).print(f"{target.name}: builds for {release}{also}")


def _print_settings(checkpoint: Checkpoint, profile: Profile) -> None:
    from tc_export.cli.tables import settings_table

    Terminal(stderr=True).print(settings_table(checkpoint, profile))
