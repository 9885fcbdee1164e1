# SPDX-License-Identifier: Apache-2.0
"""Stages `vision_engine` and `decoder_engine`: built here by TensorRT-RTX, without the device."""

from __future__ import annotations

from functools import partial

from tc_export.bundle import EngineBuild, EngineRecord, EngineState, StageResults
from tc_export.bundle.layout import engine_path, engine_stage, graph_path
from tc_export.contracts.graph_io import DECODER
from tc_export.engine.tensorrt.build import EngineRequest, build_engine
from tc_export.runner import Stage, StageContext
from tc_export.stages import shards
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import RTX_BUILDER, versions


def stage(inputs: BuildInputs, graph: str) -> Stage:
    """Build one of the two engines, with our plugins as its layers."""
    return Stage(
        name=engine_stage(graph),
        description=f"build the {graph} engine",
        key={
            "sm": inputs.target.sm,
            "precision": inputs.precision(graph),
            "profile": inputs.spec.profile.model_dump(),
            "tools": versions(("tc-export", *RTX_BUILDER)),
        },
        outputs=(engine_path(graph),),
        needs=(graph, "plugins"),
        after=(shards.STAGE,),
        run=partial(_run, inputs=inputs, graph=graph),
        in_subprocess=True,
    )


def _run(context: StageContext, *, inputs: BuildInputs, graph: str) -> StageResults:
    target = inputs.target
    assert target.toolchain.engine != "onnxruntime"
    custom_nodes = context.results.custom_nodes[graph]
    report = build_engine(
        EngineRequest(
            flavour=target.toolchain.engine,
            graph=context.folder / graph_path(graph),
            engine=context.path(engine_path(graph)),
            plugin_library=context.folder / inputs.plugin_library if custom_nodes else None,
            shapes=inputs.shapes(graph),
            compute_capability=target.sm,
            custom_nodes=custom_nodes,
            precision=inputs.precision(graph),
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
    return StageResults(
        precision_realised={graph: report.precision},
        engine_builds={graph: built},
        engine=record if graph == DECODER else None,
    )
