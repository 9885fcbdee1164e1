# SPDX-License-Identifier: Apache-2.0
"""Stages `vision_tensorrt` and `decoder_tensorrt`: a graph as the device's TensorRT parses it."""

from __future__ import annotations

from functools import partial

from tc_export.bundle.layout import graph_path, tensorrt_graph_path, tensorrt_stage
from tc_export.errors import TcExportError
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import EXPORTERS, versions


def stage(inputs: BuildInputs, graph: str) -> Stage:
    """Write one of the two graphs for the TensorRT of the device's release."""
    assert inputs.release is not None
    tensorrt = inputs.release.tensorrt
    return Stage(
        name=tensorrt_stage(graph),
        description=f"write the {graph} graph for TensorRT {tensorrt}",
        key={"tensorrt": tensorrt, "tools": versions(EXPORTERS)},
        outputs=(tensorrt_graph_path(graph),),
        needs=(graph,),
        run=partial(_run, graph=graph, tensorrt=tensorrt),
    )


def _run(context: StageContext, *, graph: str, tensorrt: str) -> None:
    from tc_export.graph.tensorrt_form import to_tensorrt_form

    source, path = context.folder / graph_path(graph), context.folder / tensorrt_graph_path(graph)
    form = to_tensorrt_form(source, path, tensorrt)
    expected = context.results.custom_nodes[graph]
    if form.custom_nodes != expected:
        raise TcExportError(
            f"the {graph} graph for TensorRT has custom nodes {form.custom_nodes}, and should have "
            f"{expected}"
        )
