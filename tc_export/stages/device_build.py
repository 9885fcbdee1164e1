# SPDX-License-Identifier: Apache-2.0
"""Stage `finish`: what the device needs to build its engines itself, and to judge them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tc_export.bundle import EngineRecord, EngineState, Manifest, StageResults, Staging, find_damage
from tc_export.bundle.layout import (
    PLUGIN_SOURCES,
    engine_path,
    engine_stage,
    tensorrt_graph_path,
    tensorrt_stage,
)
from tc_export.contracts.graph_io import VISION
from tc_export.contracts.parts import decoder_names
from tc_export.runner import Reporter, Stage, StageContext, is_up_to_date
from tc_export.stages import golden, shards
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import versions

if TYPE_CHECKING:
    from tc_export.device_build.write import PendingEngine

STAGE = "finish"
NEXT_STEP = "on the device: tc-export finish BUNDLE, or without Python: sh BUNDLE/finish/finish.sh"


def stage(inputs: BuildInputs) -> Stage:
    """Write what is to be done there; the engine is pending from then on."""
    assert inputs.release is not None
    return Stage(
        name=STAGE,
        description="write the script for the device",
        key={
            "target": inputs.target.name,
            "release": inputs.release.model_dump(),
            "precision": inputs.spec.precision_asked,
            "profile": inputs.spec.profile.model_dump(),
            "tools": versions(("tc-export",)),
        },
        outputs=("finish",),
        needs=(
            "plugins",
            golden.STAGE,
            *(tensorrt_stage(each.name) for each in inputs.engine_graphs),
        ),
        after=(shards.STAGE,),
        run=partial(_run, inputs=inputs),
    )


def _run(context: StageContext, *, inputs: BuildInputs) -> StageResults:
    from tc_export.device_build.write import PendingBuild, write_finish

    target, release = inputs.target, inputs.release
    assert release is not None
    assert target.sm is not None
    assert target.toolchain.architecture is not None
    pending = PendingBuild(
        target=target.name,
        release=release.name,
        cuda=release.cuda,
        tensorrt=release.tensorrt,
        architecture=target.toolchain.architecture,
        sm=target.sm,
        plugin_library=inputs.plugin_library,
        plugin_sources=PLUGIN_SOURCES if (context.folder / PLUGIN_SOURCES).is_dir() else None,
        engines=_pending_engines(context, inputs),
    )
    write_finish(context.folder, pending, context.digests)
    record = EngineRecord(
        backend=target.toolchain.engine, state=EngineState.PENDING, next_step=NEXT_STEP
    )
    return StageResults(engine=record)


def _pending_engines(context: StageContext, inputs: BuildInputs) -> dict[str, PendingEngine]:
    """The engines, each with a call to judge it by."""
    from tc_export.device_build.write import PendingEngine
    from tc_export.golden.files import read_golden

    calls = read_golden(context.folder)
    return {
        each.name: PendingEngine(
            graph=tensorrt_graph_path(each.name),
            engine=engine_path(each.name),
            precision=inputs.precision(each.graph),
            custom_nodes=context.results.custom_nodes[each.name],
            shapes=inputs.shapes(each),
            golden=calls[each.name],
        )
        for each in inputs.engine_graphs
    }


def finished_bundle(
    staging: Staging, stages: Sequence[Stage], reporter: Reporter
) -> Manifest | None:
    """The published bundle, where its device has finished it and no stage would run again.

    A build could only take the device's engines away. None where a file is damaged.
    """
    published = staging.published
    if published is None or not is_finished(published) or not is_up_to_date(published, stages):
        return None
    if find_damage(staging.output, published, partial(reporter.read, "the bundle")):
        return None
    reporter.listed(stages)
    for each in stages:
        reporter.skipped(each)
    return published


def is_finished(manifest: Manifest) -> bool:
    """True where the device has added all engines to what a build here has made."""
    stages, names = manifest.stages, (VISION, *decoder_names(manifest.decoder_parts))
    return STAGE in stages and all(engine_stage(name) in stages for name in names)
