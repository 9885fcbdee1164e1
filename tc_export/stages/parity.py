# SPDX-License-Identifier: Apache-2.0
"""Stage `parity`: the graphs in ONNX Runtime against PyTorch, whatever runs them later."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tc_export.bundle.layout import graph_path
from tc_export.checkpoint.reader import Checkpoint
from tc_export.contracts.graph_io import GRAPHS
from tc_export.errors import CheckFailed
from tc_export.plan.build_memory import memory_limits
from tc_export.plan.parameters import decoder_count
from tc_export.runner import Stage, StageContext
from tc_export.stages import assets, embedding, shards
from tc_export.stages.inputs import BuildInputs
from tc_export.stages.tools import RUNNERS, versions

if TYPE_CHECKING:
    from tc_export.parity.layers.result import ByLayerResult
    from tc_export.parity.report.write import Origin
    from tc_export.parity.tensors.result import ParityResult

LAYERS_TOO = 300_000_000
"""Up to so many weights of the decoder every layer is judged by itself too: it takes about twice as
long as the rest. Of a larger one that is done where something is wrong, or when it is asked for."""

WRONG_LAYER = "a layer does not compute what PyTorch computes, though the logits do not show it"

REPEAT = ("tc-export", "parity", "BUNDLE", "--checkpoint", "CHECKPOINT", "--graphs")


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
    from tc_export.parity.layers.report import by_layer_as_json, by_layer_failure
    from tc_export.parity.report.write import remove_report, write_report
    from tc_export.parity.tensors.report import failures, headline, result_as_json

    result = _compare(context, inputs)
    found, lines, passed = result_as_json(result), failures(result), result.passed
    if not passed or decoder_count(inputs.checkpoint.config.model).total <= LAYERS_TOO:
        layers = _by_layer(context, inputs)
        found["by_layer"] = by_layer_as_json(layers)
        lines += [] if layers.passed else [by_layer_failure(layers)]
        passed &= layers.passed
    origin = _origin(context, inputs)
    remove_report(inputs.failure)  # of an earlier build
    if passed:
        folder = context.folder / "parity"
        folder.mkdir()
        write_report(folder, found, lines, origin)
        return
    raise CheckFailed(
        f"{WRONG_LAYER if result.passed else headline(result)}:\n"
        + "\n".join(f"  {line}" for line in lines),
        hint=f"nothing was published; {_keep(inputs.failure, found, lines, origin)}, and with "
        "--no-parity there is a bundle to look at",
    )


def _compare(context: StageContext, inputs: BuildInputs) -> ParityResult:
    """Tensors, greedy answers and the bundle's other files."""
    from tc_export.parity.graph_engines import GraphsInTurn
    from tc_export.parity.tensors.check_bundle import compare_with_pytorch, graphs_in_float32

    config = inputs.checkpoint.config.model
    limits = memory_limits(
        config,
        inputs.precisions,
        inputs.memory_bytes,
        inputs.spec.profile.max_length,
        inputs.checkpoint.config.recipe,
    )
    return compare_with_pytorch(
        GraphsInTurn(context.folder, config, inputs.precisions, limits.parts),
        inputs.checkpoint,
        inputs.spec.profile,
        inputs.precisions,
        bundle=context.folder,
        in_float32=graphs_in_float32(
            context.folder, inputs.checkpoint, inputs.precisions, limits.parts
        ),
        answer_bytes=limits.answer_bytes,
        advance=context.advance,
    )


def _keep(folder: Path, found: dict[str, Any], lines: list[str], origin: Origin) -> str:
    """Write the report of a failure beside the bundle's place; says where it is, or why not."""
    from tc_export.parity.report.write import REPORT_HTML, write_report

    try:
        folder.mkdir(exist_ok=True)
        write_report(folder, found, lines, origin)
    except OSError as error:
        return f"the report could not be written to {folder} ({error.strerror})"
    return f"{folder / REPORT_HTML} draws where they part"


def _by_layer(context: StageContext, inputs: BuildInputs) -> ByLayerResult:
    from tc_export.parity.layers.check_bundle import Judged, check_by_layer

    judged = Judged(
        folder=context.folder,
        checkpoint=inputs.checkpoint,
        precisions=inputs.precisions,
        profile=inputs.spec.profile,
    )
    return check_by_layer(judged, lambda what, done, total: context.advance(done, total))


def _origin(context: StageContext, inputs: BuildInputs) -> Origin:
    from tc_export.parity.report.write import Origin

    paths = [graph_path(graph) for graph in GRAPHS]
    return Origin(
        checkpoint_digest=inputs.spec.checkpoint_digest,
        profile=inputs.spec.profile,
        graphs={path: context.digests.sha256(context.folder / path) for path in paths},
        command=REPEAT,
    )
