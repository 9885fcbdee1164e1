# SPDX-License-Identifier: Apache-2.0
"""Stage `golden`: a call of each graph, and what the model gives for it, for any runtime."""

from __future__ import annotations

from functools import partial

from tc_export.bundle.layout import GOLDEN_FOLDER
from tc_export.contracts.graph_io import DECODER, VISION, decoder_inputs, vision_inputs
from tc_export.contracts.parts import EngineGraph
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import versions

STAGE = "golden"


def stage(inputs: BuildInputs) -> Stage:
    """Write golden data; it is the same whatever runs the graphs later."""
    return Stage(
        name=STAGE,
        description="write golden inputs and outputs",
        key={
            "checkpoint": inputs.spec.checkpoint_digest,
            "precision": inputs.spec.precision_asked,
            "profile": inputs.spec.profile.model_dump(),
            "decoder_parts": inputs.spec.decoder_parts,
            "tools": versions(("tc-export", "torch", "polygraphy")),
        },
        outputs=(GOLDEN_FOLDER,),
        run=partial(_run, inputs=inputs),
    )


def _run(context: StageContext, *, inputs: BuildInputs) -> None:
    from tc_export.golden.files import write_golden
    from tc_export.golden.make import make_golden
    from tc_export.golden.polygraphy import write_for_polygraphy
    from tc_export.parity.tensors.check_bundle import references

    profile, config = inputs.spec.profile, inputs.checkpoint.config.model
    golden = make_golden(
        references(inputs.checkpoint, inputs.precisions),
        inputs.precisions,
        max_frames=profile.max_frames,
        max_length=profile.max_length,
        parts=inputs.decoder_parts,
    )
    write_golden(context.folder, golden)
    whole = (EngineGraph(VISION, VISION), EngineGraph(DECODER, DECODER))
    for each in (*whole, *inputs.decoder_parts):
        layers = None if each.part is None else each.part.layers
        write_for_polygraphy(
            context.folder,
            each.name,
            golden[each.name],
            vision_inputs(config) if each.graph == VISION else decoder_inputs(config, layers),
            precision=inputs.precision(each.graph).dtype,
            cache_rows=profile.max_length,
        )
