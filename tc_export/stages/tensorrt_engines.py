# SPDX-License-Identifier: Apache-2.0
"""Stages `vision_engine` and `decoder_engine`: built here by TensorRT-RTX, without the device.

A decoder in parts has a stage for each: each is built in a process of its own, and a build that was
killed between two goes on at the next.
"""

from __future__ import annotations

from functools import partial

from tc_export.bundle import EngineBuild, EngineRecord, EngineState, StageResults
from tc_export.bundle.layout import engine_path, engine_stage, graph_path
from tc_export.contracts.graph_io import DECODER
from tc_export.contracts.parts import EngineGraph
from tc_export.engine.tensorrt.build import EngineRequest, build_engine
from tc_export.runner import Stage, StageContext
from tc_export.stages import decoder_parts, shards
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import RTX_BUILDER, versions


def stage(inputs: BuildInputs, each: EngineGraph) -> Stage:
    """Build one of the engines, with our plugins as its layers."""
    return Stage(
        name=engine_stage(each.name),
        description=f"build the {each.title} engine",
        key={
            "sm": inputs.target.sm,
            "precision": inputs.precision(each.graph),
            "profile": inputs.spec.profile.model_dump(),
            "tools": versions(("tc-export", *RTX_BUILDER)),
        },
        outputs=(engine_path(each.name),),
        needs=(decoder_parts.source_stage(each), "plugins"),
        after=(shards.STAGE,),
        run=partial(_run, inputs=inputs, each=each),
        in_subprocess=True,
    )


def _run(context: StageContext, *, inputs: BuildInputs, each: EngineGraph) -> StageResults:
    from tc_export.graph.passes.dequantize_weights import few_bits_of

    target = inputs.target
    assert target.toolchain.engine != "onnxruntime"
    custom_nodes = context.results.custom_nodes[each.name]
    report = build_engine(
        EngineRequest(
            flavour=target.toolchain.engine,
            graph=context.folder / graph_path(each.name),
            engine=context.path(engine_path(each.name)),
            plugin_library=context.folder / inputs.plugin_library if custom_nodes else None,
            shapes=inputs.shapes(each),
            compute_capability=target.sm,
            custom_nodes=custom_nodes,
            precision=inputs.precision(each.graph),
            few_bits=few_bits_of(context.folder / graph_path(each.name)),
        ),
        context.advance,
    )
    built = EngineBuild(
        builder=report.tensorrt,
        sm=target.sm,
        precision=report.precision,
        layers=report.layers,
        plugin_layers=dict(report.plugin_layers),
        few_bits=report.few_bits,
    )
    record = EngineRecord(backend=target.toolchain.engine, state=EngineState.BUILT)
    return StageResults(
        precision_realised={each.name: report.precision},
        engine_builds={each.name: built},
        engine=record if each.graph == DECODER else None,
    )
