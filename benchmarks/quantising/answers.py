# SPDX-License-Identifier: Apache-2.0
"""How many of the generated questions a checkpoint of the demonstration model answers right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerFast

from tc_export.checkpoint.reader import Checkpoint
from tc_export.demo_model.batches import Batcher, predict
from tc_export.tasks import Item

BATCH = 48


@torch.no_grad()
def marks(checkpoint: Checkpoint, items: Sequence[Item]) -> list[bool]:
    """Whether each item is answered right, greedily, in float32: see `demo_model.evaluation`."""
    model = checkpoint.load_model(torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint.folder)
    batcher = Batcher(checkpoint.config.model, tokenizer)
    found: list[bool] = []
    for start in range(0, len(items), BATCH):
        batch = batcher(items[start : start + BATCH])
        chosen = predict(model, batch, batcher.visual_token).argmax(-1)
        found += (chosen == batch.targets).all(-1).tolist()
    return found
