# SPDX-License-Identifier: Apache-2.0
"""Perturbations of a clip's time: the same frames in another order, or one frame for all.

What a model knows of time is what changes in its answers when time is perturbed. Clips that stand
still are the same under each perturbation.
"""

from __future__ import annotations

import random
from dataclasses import replace
from enum import StrEnum

from tc_export.tasks import Item


class Perturbation(StrEnum):
    """What is done to the frames of a clip."""

    SHUFFLED = "shuffled"
    REVERSED = "reversed"
    FROZEN = "frozen"  # the middle frame stands for all


def frame_order(perturbation: Perturbation, item: Item) -> list[int]:
    """Which frame of the item's clip stands at each place; always the same for an item."""
    frames = len(item.clip.frames)
    in_order = list(range(frames))
    match perturbation:
        case Perturbation.REVERSED:
            return in_order[::-1]
        case Perturbation.FROZEN:
            return [frames // 2] * frames
        case Perturbation.SHUFFLED:
            rng = random.Random(
                f"{perturbation}/{item.kind.value}/{item.grade}/{item.split}/{item.seed}"
            )
            order = in_order
            while order == in_order and frames > 1:
                order = rng.sample(in_order, frames)
            return order


def perturb(item: Item, perturbation: Perturbation) -> Item:
    """The item with its clip perturbed; question and answer stay."""
    frames = tuple(item.clip.frames[step] for step in frame_order(perturbation, item))
    return replace(item, clip=replace(item.clip, frames=frames))
