# SPDX-License-Identifier: Apache-2.0
"""Stage `decoder_parts`: the decoder's graph cut into those that become an engine each.

They refer to the whole graph's weights, and are small.
"""

from __future__ import annotations

from functools import partial

from tc_export.bundle import StageResults
from tc_export.bundle.layout import graph_path
from tc_export.contracts.graph_io import DECODER
from tc_export.contracts.parts import EngineGraph
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import EXPORTERS, versions

STAGE = "decoder_parts"


def source_stage(each: EngineGraph) -> str:
    """The stage that makes the graph which becomes an engine."""
    return each.graph if each.part is None else STAGE


def stage(inputs: BuildInputs) -> Stage:
    """Write a graph for each part of the decoder."""
    parts = inputs.decoder_parts
    return Stage(
        name=STAGE,
        description=f"cut the decoder graph into {len(parts)} parts",
        key={
            "parts": [(each.name, str(each.part)) for each in parts],
            "tools": versions(EXPORTERS),
        },
        outputs=tuple(graph_path(each.name) for each in parts),
        needs=(DECODER,),
        run=partial(_run, inputs=inputs),
    )


def _run(context: StageContext, *, inputs: BuildInputs) -> StageResults:
    from tc_export.graph.parts import write_parts

    config, parts = inputs.checkpoint.config.model, inputs.decoder_parts
    places = {
        each.part: context.path(graph_path(each.name)) for each in parts if each.part is not None
    }
    written = write_parts(context.folder / graph_path(DECODER), config, places)
    return StageResults(
        custom_nodes={each.name: written[each.part] for each in parts if each.part is not None}
    )
