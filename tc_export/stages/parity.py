# SPDX-License-Identifier: Apache-2.0
"""Stage `parity`: the graphs in ONNX Runtime against PyTorch, whatever runs them later."""

from __future__ import annotations

from functools import partial
from typing import Any

from tc_export.checkpoint.reader import Checkpoint
from tc_export.contracts.graph_io import GRAPHS
from tc_export.errors import CheckFailed
from tc_export.plan.build_memory import memory_limits
from tc_export.runner import Stage, StageContext
from tc_export.stages import assets, embedding, shards
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import RUNNERS, versions


def stage(inputs: BuildInputs) -> Stage:
    """Compare with PyTorch, and write the report. Where they differ, nothing is published."""
    return Stage(
        name="parity",
        description="compare with PyTorch",
        key={
            "profile": inputs.spec.profile.model_dump(),
            "assets": _assets_key(inputs.checkpoint),
            "tools": versions({*RUNNERS, *assets.TOKENIZER_READERS, "torch"}),
        },
        outputs=("parity",),
        needs=(*GRAPHS, embedding.STAGE),
        after=(shards.STAGE, assets.STAGE),
        run=partial(_run, inputs=inputs),
    )


def _assets_key(checkpoint: Checkpoint) -> dict[str, Any]:
    """What is judged of the bundle's small files; they name the target too, which is not.

    End tokens are part of the checkpoint's digest.
    """
    return {
        "files": assets.files_to_copy(checkpoint),
        "image_aspect_ratio": checkpoint.config.document.get("image_aspect_ratio"),
    }


def _run(context: StageContext, *, inputs: BuildInputs) -> None:
    from tc_export.parity.graph_engines import GraphsInTurn
    from tc_export.parity.tensors.check_bundle import compare_with_pytorch
    from tc_export.parity.tensors.report import failures, headline, write_report

    config = inputs.checkpoint.config.model
    limits = memory_limits(
        config, inputs.precisions, inputs.memory_bytes, inputs.spec.profile.max_length
    )
    result = compare_with_pytorch(
        GraphsInTurn(context.folder, config, inputs.precisions, limits.parts),
        inputs.checkpoint,
        inputs.spec.profile,
        inputs.precisions,
        bundle=context.folder,
        answer_bytes=limits.answer_bytes,
        advance=context.advance,
    )
    folder = context.folder / "parity"
    folder.mkdir()
    write_report(result, folder)
    if not result.passed:
        raise CheckFailed(
            f"{headline(result)}:\n" + "\n".join(f"  {line}" for line in failures(result)),
            hint="nothing was published",
        )
