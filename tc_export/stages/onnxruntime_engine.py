# SPDX-License-Identifier: Apache-2.0
"""Stage `engine`, for the processor: ONNX Runtime runs the graphs themselves, once they load."""

from __future__ import annotations

from tc_export.bundle import EngineRecord, EngineState, StageResults
from tc_export.contracts.graph_io import GRAPHS
from tc_export.runner import Stage, StageContext
from tc_export.stages import shards
from tc_export.stages.tools import RUNNERS, versions


def stage() -> Stage:
    """Load both graphs as any runtime would, without our library; writes nothing."""
    return Stage(
        name="engine",
        description="load the engines",
        key={"tools": versions(RUNNERS)},
        outputs=(),
        needs=GRAPHS,
        after=(shards.STAGE,),
        run=_run,
    )


def _run(context: StageContext) -> StageResults:
    from tc_export.engine.loading import ONNX_RUNTIME, load_engines

    load_engines(context.folder, {}, native=False)
    return StageResults(engine=EngineRecord(backend=ONNX_RUNTIME, state=EngineState.BUILT))
