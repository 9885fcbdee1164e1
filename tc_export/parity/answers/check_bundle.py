# SPDX-License-Identifier: Apache-2.0
"""Asks a published bundle's engine and its checkpoint in PyTorch the same generated questions.

Both sides share the bundle's own preprocessing, prompt template and tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tc_export.bundle import Profile
from tc_export.bundle.layout import EMBEDDING_FILE
from tc_export.checkpoint.hf_config import read_config
from tc_export.model.positions import Clip
from tc_export.parity.answers.accuracy import (
    LONGEST_ANSWER,
    VISUAL_PLACE,
    Language,
    Question,
    Respondent,
    TaskResult,
    Thresholds,
    check_tasks,
)
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
    items_each: int = DEFAULT_ITEMS_EACH,
    thresholds: Thresholds | None = None,
    graphs: bool = False,
    native: bool | None = None,
    threads: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> TaskResult:
    """Ask a published bundle's engine and the PyTorch model in float32 the same test items.

    `items_each` is how many of every kind and grade; for `checkpoint` and `graphs` see
    `tc_export.parity.tensors.check_bundle.check_bundle`.

    Raises:
        BundleError: the bundle cannot be used.
        CheckpointError: the checkpoint is gone, or is another one.
        UsageError: the bundle's profile is too small for the clips.
    """
    check_room_for_clips(bundle)
    manifest, opened = open_with_checkpoint(bundle, checkpoint)
    config = opened.config.model
    model = opened.load_model(torch.float32)
    reference = TorchDecoderEngine(model)
    table = reference.embedding_table()
    engines = judged_engines(bundle, manifest, graphs=graphs, native=native, threads=threads)
    return check_tasks(
        make_items(Split.TEST, items_each),
        pytorch=Respondent(
            name=reference.backend,
            config=config,
            vision=TorchVisionEngine(model),
            decoder=reference,
            embed=lambda token_ids: table[token_ids],
        ),
        engine=Respondent(
            name=engines.decoder.backend,
            config=config,
            vision=engines.vision,
            decoder=engines.decoder,
            embed=EmbeddingTable(bundle / EMBEDDING_FILE),
        ),
        language=_language(bundle, manifest.profile),
        thresholds=thresholds,
        advance=advance,
    )


def _language(bundle: Path, profile: Profile) -> Language:
    """The bundle's own preprocessing, prompt template and tokenizer."""
    config = read_config(bundle)
    pixels = read_preprocess_config(bundle, config.model.vision.image_size)
    prompts = PromptBuilder.load(bundle)

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
