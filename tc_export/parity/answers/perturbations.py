# SPDX-License-Identifier: Apache-2.0
"""Probes of a model's sense of time: the same frames in another order, or one frame for all.

What a model knows of time is what changes in its answers under a probe. Clips that stand still are
the same under each.
"""

from __future__ import annotations

import random
from dataclasses import replace
from enum import StrEnum

from tc_export.tasks import Item


class Probe(StrEnum):
    """What is done to the frames of a clip."""

    SHUFFLED = "shuffled"
    REVERSED = "reversed"
    FROZEN = "frozen"  # the middle frame stands for all


def frame_order(probe: Probe, item: Item) -> list[int]:
    """Which frame of the item's clip stands at each place; always the same for an item."""
    frames = len(item.clip.frames)
    in_order = list(range(frames))
    match probe:
        case Probe.REVERSED:
            return in_order[::-1]
        case Probe.FROZEN:
            return [frames // 2] * frames
        case Probe.SHUFFLED:
            rng = random.Random(f"{probe}/{item.kind.value}/{item.grade}/{item.split}/{item.seed}")
            order = in_order
            while order == in_order and frames > 1:
                order = rng.sample(in_order, frames)
            return order


def probed(item: Item, probe: Probe) -> Item:
    """The item with its clip under the probe; question and answer stay."""
    frames = tuple(item.clip.frames[step] for step in frame_order(probe, item))
    return replace(item, clip=replace(item.clip, frames=frames))
