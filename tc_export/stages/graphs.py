# SPDX-License-Identifier: Apache-2.0
"""Stages `vision` and `decoder`: one ONNX graph each, with the weights that it has alone."""

from __future__ import annotations

from functools import partial
from pathlib import PurePosixPath

from tc_export.bundle import StageResults
from tc_export.bundle.layout import graph_path
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.graph.weights_plan import WeightsPlan, own_weights, plan_weights
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import EXPORTERS, versions


def stage(inputs: BuildInputs, graph: str) -> Stage:
    """Export one of the two graphs. Weights that stay as they are stored are stage `shards`'."""
    plan = plan_weights(inputs.checkpoint, graph, inputs.precision(graph).dtype)
    path = PurePosixPath(graph_path(graph))
    files = (path, own_weights(path)) if plan.converts else (path,)
    return Stage(
        name=graph,
        description=f"export the {graph} graph",
        key={
            "checkpoint": inputs.spec.checkpoint_digest,
            "places": plan.places,
            "precision": inputs.precision(graph),
            "tools": versions(EXPORTERS),
        },
        outputs=tuple(map(str, files)),
        run=partial(_run, inputs=inputs, graph=graph, plan=plan),
    )


def _run(
    context: StageContext, *, inputs: BuildInputs, graph: str, plan: WeightsPlan
) -> StageResults:
    from tc_export.graph import export

    exporter = {VISION: export.export_vision, DECODER: export.export_decoder}[graph]
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        context.advance(done, plan.nbytes)

    precision = inputs.precision(graph)
    path = context.path(graph_path(graph))
    report = exporter(inputs.checkpoint, precision.dtype, path, advance)
    return StageResults(
        precision_realised={graph: precision}, custom_nodes={graph: report.custom_nodes}
    )
