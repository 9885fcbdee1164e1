# SPDX-License-Identifier: Apache-2.0
"""`tc-export finish`: a pending bundle's engines, on their device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tc_export.cli.terminal import Terminal, say

if TYPE_CHECKING:
    from tc_export.bundle import Manifest
    from tc_export.device_build.machine import Machine

app = typer.Typer()


@app.command(epilog="Example: tc-export finish llava-orin")
def finish(
    bundle: Annotated[Path, typer.Argument(help="Bundle whose engine is pending, on its device.")],
) -> None:
    """Build a pending bundle's engines on the device, judge them, and publish them in it.

    Engines that finish/finish.sh has built are taken. What was built before a kill is not built
    again. Exit code 1: an engine does not compute what the model computes.
    """
    from tc_export.bundle import open_bundle

    open_bundle(bundle)

    from tc_export.device_build.machine import this_machine
    from tc_export.device_build.spec import read_spec

    machine = this_machine(read_spec(bundle))
    print_bundle(bundle, _finish_on(machine, bundle))


def finish_if_here(bundle: Path, manifest: Manifest) -> Manifest:
    """Finish a pending bundle at once, where this machine is the device that it is for."""
    from tc_export.bundle import EngineState
    from tc_export.device_build.machine import check_machine, this_machine
    from tc_export.device_build.spec import read_spec
    from tc_export.errors import UnsupportedEnvironment

    if manifest.engine is None or manifest.engine.state is not EngineState.PENDING:
        return manifest
    spec = read_spec(bundle)
    try:
        machine = this_machine(spec)
        check_machine(spec, machine, bundle)
    except UnsupportedEnvironment:
        return manifest
    return _finish_on(machine, bundle)


def _finish_on(machine: Machine, bundle: Path) -> Manifest:
    from rich.progress import Progress

    from tc_export.device_build.finish import Tools
    from tc_export.device_build.finish import finish as run_finish

    console = Terminal(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("finish", total=None)

        def step(phrase: str) -> None:
            progress.reset(task, total=None, description=phrase)
            progress.console.print(phrase)

        def advance(done: float, total: float | None) -> None:
            progress.update(task, completed=done, total=total)

        return run_finish(bundle, machine, Tools(on_step=step, on_progress=advance))


def print_bundle(bundle: Path, manifest: Manifest) -> None:
    """Say what was built, where it is, and what is next where the engine is pending."""
    from tc_export.plan.units import spell_count

    engine = manifest.engine
    assert engine is not None
    console = Terminal(stderr=True)
    for graph, built in manifest.engine_builds.items():
        plugins = ", ".join(f"{count} {op}" for op, count in built.plugin_layers.items())
        console.print(
            f"{graph}: {built.builder}, SM {built.sm}, {built.precision}, {built.layers} layers"
            + (f", of which plugins: {plugins}" if plugins else "")
            + "".join(
                f"; {spell_count(count)} weights in {dtype}"
                for dtype, count in built.few_bits.items()
            )
        )
    if manifest.release is not None:
        say(f"target: {manifest.target}, {manifest.release}")
    say(f"engine: {engine.state} ({engine.backend})")
    say(f"bundle: {bundle}")
    if engine.next_step:
        say(f"next: {engine.next_step}")
