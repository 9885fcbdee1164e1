# SPDX-License-Identifier: Apache-2.0
"""Stage `shards`: the checkpoint's files that the graphs refer to, each once, as it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tc_export.bundle.layout import shard_path
from tc_export.contracts.graph_io import GRAPHS
from tc_export.graph.weights_plan import plan_weights
from tc_export.runner import Stage, StageContext
from tc_export.stages.inputs import BuildInputs

STAGE = "shards"


def stage(inputs: BuildInputs) -> Stage:
    """Bring in the shards with weights that stay as they are stored."""
    plans = [
        plan_weights(inputs.checkpoint, graph, inputs.precision(graph).dtype) for graph in GRAPHS
    ]
    shards = {name: file for plan in plans for name, file in plan.shards.items()}
    places = {
        name: (shard, x.offset)
        for shard, file in shards.items()
        for name, x in inputs.checkpoint.stored().items()
        if x.file == file
    }
    return Stage(
        name=STAGE,
        description="take the checkpoint's files",
        key={
            "checkpoint": inputs.spec.checkpoint_digest,
            "places": places,
            "weights": inputs.spec.weights_asked,
        },
        outputs=tuple(shard_path(name) for name in sorted(shards)),
        run=partial(_run, shards=shards),
    )


def _run(context: StageContext, *, shards: dict[str, Path]) -> None:
    sizes = {name: file.stat().st_size for name, file in shards.items()}
    total, done = sum(sizes.values()), 0
    for name, file in sorted(shards.items()):
        copied = done

        def advance(size_bytes: int) -> None:
            nonlocal copied
            copied += size_bytes
            context.advance(copied, total)

        context.place(file, shard_path(name), advance)
        done += sizes[name]
        context.advance(done, total)
