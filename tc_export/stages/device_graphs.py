# SPDX-License-Identifier: Apache-2.0
"""Stages `vision_tensorrt` and `decoder_tensorrt`: a graph as the device's TensorRT parses it."""

from __future__ import annotations

from functools import partial

from tc_export.bundle.layout import graph_path, tensorrt_graph_path, tensorrt_stage
from tc_export.contracts.parts import EngineGraph
from tc_export.errors import TcExportError
from tc_export.runner import Stage, StageContext
from tc_export.stages import decoder_parts
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import EXPORTERS, versions


def stage(inputs: BuildInputs, each: EngineGraph) -> Stage:
    """Write one of the graphs, or a part of one, for the TensorRT of the device's release."""
    assert inputs.release is not None
    tensorrt = inputs.release.tensorrt
    return Stage(
        name=tensorrt_stage(each.name),
        description=f"write the {each.title} graph for TensorRT {tensorrt}",
        key={"tensorrt": tensorrt, "tools": versions(EXPORTERS)},
        outputs=(tensorrt_graph_path(each.name),),
        needs=(decoder_parts.source_stage(each),),
        run=partial(_run, each=each, tensorrt=tensorrt),
    )


def _run(context: StageContext, *, each: EngineGraph, tensorrt: str) -> None:
    from tc_export.graph.tensorrt_form import to_tensorrt_form

    source, path = (
        context.folder / graph_path(each.name),
        context.folder / tensorrt_graph_path(each.name),
    )
    form = to_tensorrt_form(source, path, tensorrt)
    expected = context.results.custom_nodes[each.name]
    if form.custom_nodes != expected:
        raise TcExportError(
            f"the {each.title} graph for TensorRT has custom nodes {form.custom_nodes}, and should "
            f"have {expected}"
        )
