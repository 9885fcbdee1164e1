# SPDX-License-Identifier: Apache-2.0
"""What parity runs: sequences of text and clips with random, distinct frames and odd lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tc_export.config import ModelConfig
from tc_export.model.positions import Clip, Segment, Text

DECODE_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A prompt and how it is fed.

    `token_ids` [S] has -1 at visual places; `pixel_values` [frames, 3, size, size] are all frames
    in order. `forced_tokens` are fed one by one after the prompt, whatever a side would have said.
    `chunk_tokens` bounds a prefill call (frame-aligned); None prefills at once.
    """

    name: str
    segments: tuple[Segment, ...]
    token_ids: np.ndarray
    pixel_values: np.ndarray
    forced_tokens: np.ndarray
    chunk_tokens: int | None = None

    @property
    def length(self) -> int:
        """Tokens in the prompt."""
        return len(self.token_ids)


def standard_scenarios(
    config: ModelConfig, max_frames: int, max_length: int, seed: int = 0
) -> list[Scenario]:
    """The sequences that every parity run covers, as far as the profile has room for them.

    One clip between text; several clips and an image with no text before; the profile's most
    frames, prefilled frame by frame.
    """
    random = np.random.default_rng(seed)
    tokens_per_frame = config.tokens_per_frame

    def clip(frames: int) -> Clip:
        return Clip(min(frames, max_frames), tokens_per_frame)

    few = min(3, max_frames)
    drafts: list[tuple[str, tuple[Segment, ...], int | None]] = [
        ("one clip", (Text(5), clip(few), Text(7)), None),
        ("two clips and an image", (clip(2), Text(3), clip(1), Text(2), clip(few), Text(4)), None),
        ("most frames, frame by frame", (Text(3), clip(max_frames), Text(9)), tokens_per_frame),
    ]
    if not config.temporal.mask.allows_frame_chunks:
        drafts = [(name, segments, None) for name, segments, _ in drafts]
    return [
        _draw(name, segments, chunk, config, random)
        for name, segments, chunk in drafts
        if _length(segments) + DECODE_STEPS <= max_length
    ]


def _length(segments: Sequence[Segment]) -> int:
    return sum(segment.length for segment in segments)


def _draw(
    name: str,
    segments: tuple[Segment, ...],
    chunk_tokens: int | None,
    config: ModelConfig,
    random: np.random.Generator,
) -> Scenario:
    ids = [
        random.integers(0, config.text.vocab_size, segment.length)
        if isinstance(segment, Text)
        else np.full(segment.length, -1)
        for segment in segments
    ]
    frames = sum(segment.frames for segment in segments if isinstance(segment, Clip))
    size = config.vision.image_size
    return Scenario(
        name=name,
        segments=segments,
        token_ids=np.concatenate(ids),
        pixel_values=random.standard_normal((frames, 3, size, size)).astype(np.float32),
        forced_tokens=random.integers(0, config.text.vocab_size, DECODE_STEPS),
        chunk_tokens=chunk_tokens,
    )
