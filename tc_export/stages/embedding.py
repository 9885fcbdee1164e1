# SPDX-License-Identifier: Apache-2.0
"""Stage `embedding`: the token embedding table, which is read outside the graphs."""

from __future__ import annotations

from functools import partial

from tc_export.bundle.layout import EMBEDDING_FILE
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import EXPORTERS, versions

STAGE = "embedding"


def stage(inputs: BuildInputs) -> Stage:
    """Write the table in the decoder's number format."""
    return Stage(
        name=STAGE,
        description="write the token embedding",
        key={
            "checkpoint": inputs.spec.checkpoint_digest,
            "precision": inputs.precisions.decoder,
            "tools": versions(EXPORTERS),
        },
        outputs=(EMBEDDING_FILE,),
        run=partial(_run, inputs=inputs),
    )


def _run(context: StageContext, *, inputs: BuildInputs) -> None:
    from tc_export.graph.export import export_embedding

    dtype = inputs.precisions.decoder.dtype
    export_embedding(inputs.checkpoint, dtype, context.path(EMBEDDING_FILE))
