# SPDX-License-Identifier: Apache-2.0
"""Stages `vision` and `decoder`: one ONNX graph each, with its weights beside it."""

from __future__ import annotations

from functools import partial

from tc_export.bundle import StageResults
from tc_export.contracts.graph_io import DECODER, VISION
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import EXPORTERS, versions


def stage(inputs: BuildInputs, graph: str) -> Stage:
    """Export one of the two graphs."""
    return Stage(
        name=graph,
        description=f"export the {graph} graph",
        key={
            "checkpoint": inputs.spec.checkpoint_digest,
            "precision": inputs.precision(graph),
            "tools": versions(EXPORTERS),
        },
        outputs=(graph,),
        run=partial(_run, inputs=inputs, graph=graph),
    )


def _run(context: StageContext, *, inputs: BuildInputs, graph: str) -> StageResults:
    from tc_export.graph import export

    exporter = {VISION: export.export_vision, DECODER: export.export_decoder}[graph]
    folder = context.folder / graph
    folder.mkdir(parents=True)
    tensors = inputs.checkpoint.tensors
    total = sum(x.nbytes for name, x in tensors.items() if name.startswith(f"{graph}."))
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        context.advance(done, total)

    precision = inputs.precision(graph)
    report = exporter(inputs.checkpoint, precision.dtype, folder, advance)
    return StageResults(
        precision_realised={graph: precision}, custom_nodes={graph: report.custom_nodes}
    )
