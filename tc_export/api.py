# SPDX-License-Identifier: Apache-2.0
"""The functions of `import tc_export`: each does what a verb does, from paths and names.

They print nothing, and load what they need when they are called. `build`, `check_parity`,
`check_answers` and `quantize_checkpoint` need the packages of `[export]`; the others need no
PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tc_export import bundle as bundles
from tc_export.bundle import Manifest, Placement, Problem
from tc_export.config import ModelSettings
from tc_export.missing_packages import missing_packages_named

if TYPE_CHECKING:
    from tc_export.parity.answers.accuracy import TaskResult
    from tc_export.parity.tensors.result import ParityResult
    from tc_export.plan.planner import Plan
    from tc_export.quantize.checkpoint import Quantized
    from tc_export.runner import Reporter
    from tc_export.runtime.answering import VideoLanguageModel

StrPath = str | os.PathLike[str]


def open(
    bundle: StrPath,
    *,
    native: bool | None = None,
    threads: int | None = None,
    on_read: Callable[[int, int], None] = lambda done, total: None,
) -> VideoLanguageModel:
    """Open a bundle whose engine is built, once its files are found to be whole.

    Args:
        bundle: the folder that a build has made.
        native: ONNX Runtime: True demands our native library, False leaves it out, None takes it if
            it is there.
        threads: ONNX Runtime: CPU threads of each engine; None is one for each core.
        on_read: gets how many bytes of the bundle are checked, and how many there are.

    Raises:
        BundleError: not a bundle, damaged, of another version, or without its engine.
        UnsupportedEnvironment: this machine lacks what the engines need.
        UsageError: `native` or `threads` for engines that have no such choice.
    """
    from tc_export.runtime.answering import VideoLanguageModel

    return VideoLanguageModel.open(Path(bundle), native=native, threads=threads, on_read=on_read)


@missing_packages_named()
def build(
    checkpoint: StrPath,
    *,
    output: StrPath,
    target: str = "cpu",
    precision: str | None = None,
    quantize: str | None = None,
    release: str | None = None,
    max_frames: int = 16,
    max_length: int | None = None,
    settings: Mapping[str, Any] | None = None,
    check_parity: bool = True,
    jobs: int = 1,
    memory_bytes: int | None = None,
    parts: int | None = None,
    weights: Placement = Placement.AUTO,
    reporter: Reporter | None = None,
) -> Manifest:
    """Build a bundle, or bring an existing one up to date.

    Args:
        checkpoint: Hugging Face folder of a LLaVA-family model.
        output: the bundle's folder; those above it have to be there.
        target: a device, by name or by a target's file.
        precision: a number format, or one for each engine: `vision=fp16,decoder=bf16`.
        quantize: a recipe, by name or by a recipe's file: the checkpoint is quantised by it first,
            into a folder beside `output`. One that another library has quantised is repacked there.
        release: the device's software; None is the newest that the target lists.
        max_frames: most frames of a question.
        max_length: most tokens of a question, its frames and its answer; None is as the frames
            need, with room for text.
        settings: what the checkpoint leaves open, in tables as tc-export.toml has them:
            `{"temporal": {"gamma": 0.5}, "pooling": {"stride": 2}}`.
        check_parity: compare the graphs with PyTorch in float64.
        jobs: stages that may run at once; each takes memory of its own.
        memory_bytes: how much comparing, and building engines here, may use; None is two thirds, of
            what is free and of what there is.
        parts: engines that the decoder is built as; None is as few as memory allows.
        weights: how the checkpoint's weights come into the bundle.
        reporter: is told how the build goes; None tells nobody.

    Returns:
        The bundle's manifest. Its `engine.state` is `pending` where only the device can build the
        engine, and `engine.next_step` says how.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        UsageError: what is asked for cannot be.
        UnsupportedEnvironment: this machine cannot make it; a package of `[export]` may be missing.
        CheckFailed: the graphs do not compute what PyTorch computes; nothing is published.
    """
    from tc_export import pipeline
    from tc_export.runner import SilentReporter

    request = pipeline.BuildRequest(
        checkpoint=Path(checkpoint),
        output=Path(output),
        target=target,
        precision=precision,
        quantize=quantize,
        release=release,
        max_frames=max_frames,
        max_length=max_length,
        settings=ModelSettings.read(settings or {}, where="settings"),
        check_parity=check_parity,
        jobs=jobs,
        memory_bytes=memory_bytes,
        parts=parts,
        weights=weights,
    )
    return pipeline.build(request, reporter or SilentReporter())


@missing_packages_named()
def quantize_checkpoint(
    checkpoint: StrPath,
    recipe: str | None,
    output: StrPath,
    *,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Quantized:
    """Make a checkpoint whose matrices have four or eight bits; it builds as any other.

    One that another library has quantised is repacked, bit for bit: without a recipe.

    A killed run goes on at the layer where it was.

    Args:
        checkpoint: Hugging Face folder of a LLaVA-family model.
        recipe: a recipe, by name or by the path of a recipe's file; None repacks.
        output: folder of the new checkpoint; the one above it has to be there.
        advance: gets the bytes of the old checkpoint that are done, and all there are.

    Raises:
        CheckpointError: the checkpoint cannot be used, or a weight cannot be stored so.
        UsageError: the recipe does not fit the model or is not needed, or something else is at
            `output`.
    """
    from tc_export.checkpoint.reader import open_checkpoint
    from tc_export.quantize import checkpoint as quantizing

    opened = open_checkpoint(Path(checkpoint))
    chosen = quantizing.recipe_for(opened, recipe)
    return quantizing.quantize_checkpoint(opened, chosen, Path(output), advance)


def make_plan(
    checkpoint: StrPath,
    *,
    target: str = "cpu",
    frames: int = 16,
    precision: str | None = None,
    quantize: str | None = None,
    max_length: int | None = None,
    settings: Mapping[str, Any] | None = None,
    parts: int | None = None,
    memory_bytes: int | None = None,
) -> Plan:
    """Predict whether a model fits a device, how many frames do, and how fast it would be.

    Nothing is built, and no weight is read. (`tc_export.plan` is the package that computes it.)

    Args:
        checkpoint: Hugging Face folder, of which config.json is enough.
        target: as for `build`.
        frames: of a question.
        precision: as for `build`.
        quantize: as for `build`.
        max_length: as for `build`.
        settings: as for `build`.
        parts: as for `build`.
        memory_bytes: as for `build`.

    Raises:
        CheckpointError: the configuration cannot be used.
        UsageError: the target is unknown, or the frames do not fit the model's context.
        UnsupportedEnvironment: the target is this host, and it does not say how much memory it has.
    """
    from tc_export.checkpoint.hf_config import read_config
    from tc_export.plan import planner
    from tc_export.recipes import choose_recipe, settings_with_recipe
    from tc_export.targets import load_target, read_precisions

    device = load_target(target)
    asked = ModelSettings.read(settings or {}, where="settings")
    read = read_config(Path(checkpoint), settings_with_recipe(asked, quantize))
    recipe = choose_recipe(quantize, read.recipe, device, None)
    return planner.make_plan(
        read.model,
        device,
        read_precisions(precision, device),
        frames,
        max_length,
        parts=parts,
        memory_bytes=memory_bytes,
        recipe=recipe,
    )


@missing_packages_named()
def check_parity(
    bundle: StrPath,
    checkpoint: StrPath | None = None,
    *,
    graphs: bool = False,
    native: bool | None = None,
    threads: int | None = None,
    memory_bytes: int | None = None,
    advance: Callable[[float, float | None], None] = lambda done, total: None,
) -> ParityResult:
    """Compare what a bundle's engine computes, tensor by tensor, with the checkpoint in PyTorch.

    The files beside the engine are compared with what transformers makes of the checkpoint.

    Args:
        bundle: what is judged.
        checkpoint: where that is now; by default where it was at the build.
        graphs: judge the exported graphs in ONNX Runtime, and not the engine.
        native: as for `open`.
        threads: as for `open`.
        memory_bytes: how much may be used; by default two thirds of what is free.
        advance: gets the steps that are done, and how many there are.

    Returns:
        Every comparison; `passed` is the verdict, and a failure is no error.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint is gone, or is another one.
        UnsupportedEnvironment: this machine cannot run the engine, or the memory does not hold a
            layer.
    """
    from tc_export.parity.tensors.check_bundle import check_bundle

    return check_bundle(
        Path(bundle),
        None if checkpoint is None else Path(checkpoint),
        graphs=graphs,
        native=native,
        threads=threads,
        memory_bytes=memory_bytes,
        advance=advance,
    )


@missing_packages_named()
def check_answers(
    bundle: StrPath,
    checkpoint: StrPath | None = None,
    *,
    unquantised: StrPath | None = None,
    items_each: int = 10,
    most_lost: float = 0.02,
    strict: bool = False,
    graphs: bool = False,
    native: bool | None = None,
    threads: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TaskResult:
    """Ask a bundle's engine and PyTorch the same generated questions, and compare the answers.

    Where weights are quantised, the checkpoint before is asked too: `cost` of the result says what
    became of its answers, or why that was not measured.

    Args:
        bundle: what is judged; it takes 8 frames or more.
        checkpoint: as for `check_parity`.
        unquantised: where the checkpoint is now that was quantised; by default where it was then.
        items_each: questions of every kind and grade; 10 are 360 in all.
        most_lost: share of right answers that quantising may cost each kind of question.
        strict: fail also where so few items do not show that no kind lost more.
        graphs: as for `check_parity`.
        native: as for `open`.
        threads: as for `open`.
        advance: gets how many questions are answered, and how many there are.

    Returns:
        Every pair of answers; `passed` is the verdict, and a failure is no error.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: a checkpoint is gone, or is another one.
        UsageError: the bundle's profile is too small for the clips, or `unquantised` is given and
            nothing was quantised.
    """
    from tc_export.parity.answers.check_bundle import check_answers
    from tc_export.parity.cost.result import CostLimits

    return check_answers(
        Path(bundle),
        None if checkpoint is None else Path(checkpoint),
        unquantised=None if unquantised is None else Path(unquantised),
        items_each=items_each,
        cost_limits=CostLimits(most_lost=most_lost, strict=strict),
        graphs=graphs,
        native=native,
        threads=threads,
        advance=advance,
    )


def verify(
    bundle: StrPath, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Problem]:
    """Compare every file of a bundle with its manifest; none that differs is an empty list.

    `on_progress` gets how many bytes are done, and how many there are.

    Raises:
        BundleError: the manifest itself is missing, damaged, of another version, or lists a path
            that leaves the bundle.
    """
    return bundles.verify(Path(bundle), on_progress)


def inspect(bundle: StrPath) -> dict[str, Any]:
    """What a bundle is, what it was made from, and what it holds, ready for JSON.

    Raises:
        BundleError: not a bundle, of another version, or a damaged manifest.
    """
    return bundles.inspect(Path(bundle))
