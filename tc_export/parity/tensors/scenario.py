# SPDX-License-Identifier: Apache-2.0
"""What parity runs: sequences of text and clips with random, distinct frames and odd lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tc_export.config import ModelConfig
from tc_export.model.positions import Clip, Cursor, Segment, Text

DECODE_STEPS = 8

END_OF_CACHE = "end of the cache"
MOST_SCORES = 1 << 21
"""Tokens of a frame times rows of the cache, above which the end of the cache sees no frame: that
much attention is computed at once there. 512 tokens over 4096 rows."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A prompt and how it is fed.

    `token_ids` [S] has -1 at visual places; `pixel_values` [frames, 3, size, size] are all frames
    in order. `forced_tokens` are fed one by one after the prompt, whatever a side would have said.
    `chunk_tokens` bounds a prefill call (frame-aligned); None prefills at once. `start` is where
    the prompt begins: the rows of the cache before it hold random numbers.
    """

    name: str
    segments: tuple[Segment, ...]
    token_ids: np.ndarray
    pixel_values: np.ndarray
    forced_tokens: np.ndarray
    chunk_tokens: int | None = None
    start: Cursor = field(default_factory=Cursor)

    @property
    def rows_before(self) -> int:
        """Rows of the cache that are not its own."""
        return self.start.position

    @property
    def length(self) -> int:
        """Tokens in the prompt."""
        return len(self.token_ids)


def standard_scenarios(
    config: ModelConfig, max_frames: int, max_length: int, seed: int = 0
) -> list[Scenario]:
    """The sequences that every parity run covers, as far as the profile has room for them.

    One clip between text; several clips and an image with no text before; the profile's most
    frames, prefilled frame by frame; and a frame between text that ends with the profile's last
    row, after random rows. Frames are distinct within a scenario; several scenarios show the same
    ones, so that a large tower need not look at so many.
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
    drafts = [x for x in drafts if _length(x[1]) + DECODE_STEPS <= max_length]
    most = max((_frames(segments) for _, segments, _ in drafts), default=1)
    pool = _draw_frames(most, config, random)
    scenarios = [
        _draw(name, segments, chunk, config, random, pool) for name, segments, chunk in drafts
    ]
    return scenarios + end_of_cache(config, max_length, random, pool)


def end_of_cache(
    config: ModelConfig,
    max_length: int,
    random: np.random.Generator,
    pool: np.ndarray | None = None,
) -> list[Scenario]:
    """A frame between text, whose last decode step takes the last of `max_length` rows.

    All before it counts as text, so that the temporal positions are the largest that there can be.
    Where a frame is too large it is text alone. None where the profile has no room. The frame is
    one of `pool` [P, 3, size, size], or a new one.
    """
    tokens_per_frame = config.tokens_per_frame
    segments: tuple[Segment, ...] = (Text(4), Clip(1, tokens_per_frame), Text(6))
    if tokens_per_frame * max_length > MOST_SCORES or _length(segments) + DECODE_STEPS > max_length:
        segments = (Text(10),)
    first = max_length - _length(segments) - DECODE_STEPS
    if first < 0:
        return []
    chunk = tokens_per_frame if config.temporal.mask.allows_frame_chunks else None
    frames = _draw_frames(1, config, random) if pool is None else pool
    scenario = _draw(END_OF_CACHE, segments, chunk, config, random, frames)
    return [replace(scenario, start=Cursor(position=first, temporal=first))]


def batched(scenarios: Sequence[Scenario]) -> tuple[int, ...]:
    """The two scenarios that run as a batch too, by their indices: those that take least memory.

    They differ in length where any two do. None where there is one scenario alone.
    """

    def size(index: int) -> tuple[int, int]:
        return scenarios[index].rows_before, scenarios[index].length

    first, *others = sorted(range(len(scenarios)), key=size)
    if not others:
        return ()
    longer = (x for x in others if scenarios[x].length != scenarios[first].length)
    return tuple(sorted((first, next(longer, others[0]))))


def _length(segments: Sequence[Segment]) -> int:
    return sum(segment.length for segment in segments)


def _frames(segments: tuple[Segment, ...]) -> int:
    return sum(segment.frames for segment in segments if isinstance(segment, Clip))


def _draw_frames(count: int, config: ModelConfig, random: np.random.Generator) -> np.ndarray:
    size = config.vision.image_size
    return random.standard_normal((count, 3, size, size), dtype=np.float32)


def _draw(
    name: str,
    segments: tuple[Segment, ...],
    chunk_tokens: int | None,
    config: ModelConfig,
    random: np.random.Generator,
    pool: np.ndarray,
) -> Scenario:
    """A scenario whose frames are taken from `pool` [P, 3, size, size]."""
    ids = [
        random.integers(0, config.text.vocab_size, segment.length)
        if isinstance(segment, Text)
        else np.full(segment.length, -1)
        for segment in segments
    ]
    frames = random.choice(len(pool), _frames(segments), replace=False)
    return Scenario(
        name=name,
        segments=segments,
        token_ids=np.concatenate(ids),
        pixel_values=pool[frames],
        forced_tokens=random.integers(0, config.text.vocab_size, DECODE_STEPS),
        chunk_tokens=chunk_tokens,
    )
