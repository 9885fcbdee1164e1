# SPDX-License-Identifier: Apache-2.0
"""Sequences for tests: strategies, ugly examples, and the brute force's runs as segments."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from tc_export.config import AfterClip, AttentionMask, TemporalConfig
from tc_export.model.positions import Clip, Segment, Text
from tests.model.brute_force import MASKS, READINGS, Run

CLIPS = st.tuples(st.integers(1, 4), st.integers(1, 4))
RUNS = st.lists(st.one_of(st.integers(0, 4), CLIPS), max_size=6)
MASK_NAMES = st.sampled_from(MASKS)
PREFIX_MASKS = tuple(mask for mask in MASKS if mask != "frame_block")
CUTTABLE_MASKS = tuple(mask for mask in MASKS if mask != "full_visual")
READING_NAMES = st.sampled_from(READINGS)

# The ugly ones that a model's test walks through by name.
SEQUENCES: dict[str, list[Run]] = {
    "clip between texts": [3, (3, 2), 4],
    "no text before": [(2, 3), 3],
    "one token a frame": [2, (4, 1), 2],
    "one frame": [2, (1, 4), 3],
    "two clips and an image": [1, (2, 2), 2, (3, 2), 1, (1, 4), 3],
    "clips side by side": [2, (2, 2), (2, 3), 2],
    "text alone": [7],
}


def temporal_config(
    mask: str = "frame_block_causal", after_clip: str = "restart", gamma: float = 1.0
) -> TemporalConfig:
    """The package's configuration of the method."""
    return TemporalConfig(mask=AttentionMask(mask), after_clip=AfterClip(after_clip), gamma=gamma)


def segments_of(runs: Sequence[Run]) -> list[Segment]:
    """The runs as the package's segments."""
    return [Text(run) if isinstance(run, int) else Clip(*run) for run in runs]
