# SPDX-License-Identifier: Apache-2.0
"""The command line's verbs that make bundles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from tc_export.cli.options import MaxLengthOption, PrecisionOption
from tc_export.config import AfterClip, AttentionMask

if TYPE_CHECKING:
    from tc_export.bundle import Manifest, Profile
    from tc_export.checkpoint.reader import Checkpoint
    from tc_export.device_build.machine import Machine

# Imports of a verb's own machinery stand in the verb: `--help` need not load PyTorch.

app = typer.Typer()
console = Console(stderr=True)
INTERRUPTED = 130


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
            help="Compare the engine with PyTorch; needs the model in memory, in float64."
        ),
    ] = True,
    jobs: Annotated[
        int, typer.Option(min=1, help="Stages that may run at once; each takes memory of its own.")
    ] = 1,
) -> None:
    """Make a bundle of engines from a checkpoint, and check it against PyTorch.

    A killed build resumes where it was; a finished one does again only what has changed.
    """
    from tc_export.pipeline import BuildRequest, build_each
    from tc_export.runner import RichReporter

    flags = {"gamma": gamma, "mask": mask, "after_clip": after_clip}
    request = BuildRequest(
        checkpoint=checkpoint,
        output=output,
        precision=precision,
        release=release,
        max_frames=max_frames,
        max_length=max_length,
        temporal={name: value for name, value in flags.items() if value is not None},
        check_parity=parity,
        jobs=jobs,
    )
    try:
        for bundle, build_one in build_each(request, target or ["cpu"]):
            with RichReporter(console) as reporter:
                manifest = build_one(reporter, _print_settings)
            _print_end(bundle, _finish_if_here(bundle, manifest))
    except KeyboardInterrupt as interrupt:  # it says what is kept; typer would drop that
        console.print(str(interrupt), highlight=False)
        raise typer.Exit(INTERRUPTED) from None


def _print_end(bundle: Path, manifest: Manifest) -> None:
    engine = manifest.engine
    assert engine is not None
    for graph, built in manifest.engine_builds.items():
        plugins = ", ".join(f"{count} {op}" for op, count in built.plugin_layers.items())
        console.print(
            f"{graph}: {built.builder}, SM {built.sm}, {built.precision}, {built.layers} layers"
            + (f", of which plugins: {plugins}" if plugins else ""),
            highlight=False,
        )
    print(f"engine: {engine.state} ({engine.backend})")
    print(f"bundle: {bundle}")
    if engine.next_step:
        print(f"next: {engine.next_step}")


@app.command(epilog="Example: tc-export finish llava-orin")
def finish(
    bundle: Annotated[Path, typer.Argument(help="Bundle whose engine is pending, on its device.")],
) -> None:
    """Build a pending bundle's engines on the device, judge them, and publish them in it.

    Engines that finish/finish.sh has built are taken. What was built before a kill is not built
    again. Exit code 1: an engine does not compute what the model computes.
    """
    from tc_export.bundle import read_manifest
    from tc_export.device_build.machine import this_machine
    from tc_export.device_build.spec import read_spec

    read_manifest(bundle)
    machine = this_machine(read_spec(bundle))
    _print_end(bundle, _finish_on(machine, bundle))


def _finish_if_here(bundle: Path, manifest: Manifest) -> Manifest:
    """Finish a pending bundle at once, where this machine is the device that it is for."""
    from tc_export.bundle import EngineState, locate
    from tc_export.device_build.machine import check_machine, this_machine
    from tc_export.device_build.spec import read_spec
    from tc_export.errors import EnvironmentLacks

    if manifest.engine is None or manifest.engine.state is not EngineState.PENDING:
        return manifest
    spec = read_spec(bundle)
    try:
        machine = this_machine(spec)
        check_machine(spec, machine, locate(bundle, spec.plugin_library))
    except EnvironmentLacks:
        return manifest
    return _finish_on(machine, bundle)


def _finish_on(machine: Machine, bundle: Path) -> Manifest:
    from rich.progress import Progress

    from tc_export.device_build.finish import Tools
    from tc_export.device_build.finish import finish as run_finish

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("finish", total=None)

        def step(phrase: str) -> None:
            progress.reset(task, total=None, description=phrase)
            progress.console.print(phrase, highlight=False)

        def advance(done: float, total: float | None) -> None:
            progress.update(task, completed=done, total=total)

        return run_finish(bundle, machine, Tools(on_step=step, on_progress=advance))


def _print_settings(checkpoint: Checkpoint, profile: Profile) -> None:
    """Say what was read, and where each temporal setting came from."""
    model = checkpoint.config.model
    table = Table(title=f"{checkpoint.folder.name} ({checkpoint.config.family})")
    for heading in ("setting", "value", "from"):
        table.add_column(heading)
    for part, config in (("temporal", model.temporal), ("pooling", model.pooling)):
        for name, value in config.model_dump(mode="json").items():
            key = f"{part}.{name}"
            table.add_row(key, str(value), str(checkpoint.config.origins[key]))
    table.add_row("tokens per frame", str(model.tokens_per_frame), "computed")
    table.add_row("frames, tokens at most", f"{profile.max_frames}, {profile.max_length}", "flags")
    console.print(table)
