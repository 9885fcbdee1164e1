# SPDX-License-Identifier: Apache-2.0
"""Stages `vision` and `decoder`: one ONNX graph each, with the weights that it has alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath

from tc_export.bundle import StageResults
from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.reader import Checkpoint
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.dtypes import DType
from tc_export.graph.export import GraphReport, export_decoder, export_vision
from tc_export.graph.weights import WeightsPlan, own_weights, plan_weights
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import EXPORTERS, versions

Exporter = Callable[[Checkpoint, DType, Path, Callable[[int], None]], GraphReport]
EXPORTER_OF: dict[str, Exporter] = {VISION: export_vision, DECODER: export_decoder}


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
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        context.advance(done, plan.nbytes)

    precision = inputs.precision(graph)
    path = context.path(graph_path(graph))
    report = EXPORTER_OF[graph](inputs.checkpoint, precision.dtype, path, advance)
    return StageResults(
        precision_realised={graph: precision}, custom_nodes={graph: report.custom_nodes}
    )
