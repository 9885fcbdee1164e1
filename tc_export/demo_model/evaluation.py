# SPDX-License-Identifier: Apache-2.0
"""Accuracy of a model on items, by kind."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tc_export.demo_model.batches import Batcher, predict
from tc_export.model.tc_llava import TcLlava
from tc_export.tasks import Item, Kind, accuracy_by_kind

BATCH = 96


@torch.no_grad()
def accuracy(model: TcLlava, batcher: Batcher, items: Sequence[Item]) -> dict[Kind, float]:
    """Share of items of each kind whose greedy answer is exactly the right one.

    One forward an item says so: where the likeliest token is right each time, given the right
    ones before it, greedy decoding takes just those; where it is wrong once, it goes astray.
    """
    was_training = model.training
    model.eval()
    answers: list[str] = []
    for start in range(0, len(items), BATCH):
        some = items[start : start + BATCH]
        batch = batcher(some)
        right = (predict(model, batch, batcher.visual_token).argmax(-1) == batch.targets).all(-1)
        answers += [item.answer if ok else "" for item, ok in zip(some, right, strict=True)]
    model.train(was_training)
    return accuracy_by_kind(items, answers)
