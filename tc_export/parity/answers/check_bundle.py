# SPDX-License-Identifier: Apache-2.0
"""Asks a published bundle's engine and its checkpoint in PyTorch the same generated questions.

Of a quantised checkpoint the one before it is asked too, first and by itself: so no more than one
PyTorch model is in memory. All share the bundle's own preprocessing, prompt template and tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tc_export.bundle import Profile
from tc_export.bundle.layout import EMBEDDING_FILE
from tc_export.checkpoint.hf_config import read_config
from tc_export.checkpoint.reader import Checkpoint
from tc_export.model.positions import Clip
from tc_export.parity.answers.accuracy import TaskResult, Thresholds, check_tasks
from tc_export.parity.answers.asking import (
    LONGEST_ANSWER,
    VISUAL_PLACE,
    Language,
    Question,
    Respondent,
)
from tc_export.parity.cost.measure import CostMeasure
from tc_export.parity.cost.result import CostLimits
from tc_export.parity.cost.unquantised import open_unquantised
from tc_export.parity.judged_bundle import (
    check_room_for_clips,
    judged_engines,
    open_with_checkpoint,
)
from tc_export.parity.torch_engine import TorchDecoderEngine, TorchVisionEngine
from tc_export.runtime.embedding import EmbeddingTable
from tc_export.runtime.preprocess import preprocess, read_preprocess_config
from tc_export.runtime.prompt import PromptBuilder
from tc_export.tasks import Split, make_items

DEFAULT_ITEMS_EACH = 10
"""Items of every kind and grade that both sides are asked: 360 in all."""


def check_answers(
    bundle: Path,
    checkpoint: Path | None = None,
    *,
    unquantised: Path | None = None,
    items_each: int = DEFAULT_ITEMS_EACH,
    thresholds: Thresholds | None = None,
    cost_limits: CostLimits | None = None,
    graphs: bool = False,
    native: bool | None = None,
    threads: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TaskResult:
    """Ask a published bundle's engine and the PyTorch model in float32 the same test items.

    `unquantised` is where the checkpoint is that the bundle's own was quantised from; None is where
    that one says. `items_each` is how many of every kind and grade; for `checkpoint` and `graphs`
    see `tc_export.parity.tensors.check_bundle.check_bundle`.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: a checkpoint is gone, or is another one.
        UsageError: the bundle's profile is too small for the clips, or `unquantised` is given and
            nothing was quantised.
    """
    check_room_for_clips(bundle)
    manifest, opened = open_with_checkpoint(bundle, checkpoint)
    before = open_unquantised(opened, unquantised)
    engines = judged_engines(bundle, manifest, graphs=graphs, native=native, threads=threads)
    prompts = PromptBuilder.load(bundle)
    language = _language(bundle, prompts, manifest.profile)
    items = make_items(Split.TEST, items_each)
    measure, total = None, len(items)
    if isinstance(before, Checkpoint):
        measure, total = CostMeasure(before, opened), 2 * len(items)
        measure.ask(_pytorch(before), items, language, lambda done: advance(done, total))
    result = check_tasks(
        items,
        pytorch=_pytorch(opened),
        engine=Respondent(
            name=engines.decoder.backend,
            config=opened.config.model,
            vision=engines.vision,
            decoder=engines.decoder,
            embed=EmbeddingTable(bundle / EMBEDDING_FILE),
        ),
        language=language,
        thresholds=thresholds,
        heard=None if measure is None else measure.hear,
        advance=lambda done, of: advance(total - of + done, total),
    )
    if measure is None:
        assert not isinstance(before, Checkpoint)
        return replace(result, cost=before)
    return replace(result, cost=measure.cost(cost_limits or CostLimits(), prompts.tokenizer))


def _pytorch(checkpoint: Checkpoint) -> Respondent:
    """The model in float32, whole in memory."""
    model = checkpoint.load_model(torch.float32)
    decoder = TorchDecoderEngine(model)
    table = decoder.embedding_table()
    return Respondent(
        name=decoder.backend,
        config=checkpoint.config.model,
        vision=TorchVisionEngine(model),
        decoder=decoder,
        embed=lambda token_ids: table[token_ids],
    )


def _language(bundle: Path, prompts: PromptBuilder, profile: Profile) -> Language:
    """The bundle's own preprocessing, prompt template and tokenizer."""
    config = read_config(bundle)
    pixels = read_preprocess_config(bundle, config.model.vision.image_size)

    def prepare(frames: NDArray[np.uint8], text: str) -> Question:
        clip = Clip(len(frames), config.model.tokens_per_frame)
        prompt = prompts.build(text, [clip])
        prompt.check_fits(profile.max_length, LONGEST_ANSWER)
        return Question(
            pixel_values=preprocess(list(frames), pixels),
            segments=prompt.segments,
            token_ids=prompt.token_ids(VISUAL_PLACE),
        )

    return Language(
        prepare=prepare, decode=prompts.tokenizer.decode, end_tokens=config.eos_token_ids
    )
