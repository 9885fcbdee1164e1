# SPDX-License-Identifier: Apache-2.0
"""What goes through the layers: random tokens and frames, and the place that each token is at.

Two sequences. One fills the profile, so that rows at the far end of the cache are visited, and is
prefilled in several calls and then decoded token by token. The other has no text before its clips,
several of them, and an image, all in one call.

Axes: S tokens, F frames, m tokens a frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import KEY_FRAME_IDS, PREFILL_TOKENS
from tc_export.engine.session import position_feeds
from tc_export.errors import UnsupportedEnvironment
from tc_export.model.positions import TEXT, Clip, Layout, Segment, Text, frame_chunks, lay_out

DECODE_STEPS = 4
MOST_TOKENS = 4096
"""A longer profile is not filled: attention in float64 costs the square of it."""
LEAST_CALLS = 3
LOGITS_A_CALL = 16

BEFORE, BETWEEN, AFTER, DECODE = "text before", "text between", "text after", "decode"


@dataclass(frozen=True, kw_only=True)
class LayerSequence:
    """A sequence and how a graph is called with it.

    Attributes:
        token_ids: [S], -1 at visual places.
        pixel_values: [F, 3, size, size], all frames in order.
        layout: positions and mask of all tokens.
        labels: [S], each token's place.
        spans: first and one past the last token of each call.
    """

    token_ids: NDArray[np.int64]
    pixel_values: NDArray[np.float32]
    layout: Layout
    labels: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Tokens, and rows of the cache."""
        return self.layout.length

    def at(self, place: str) -> NDArray[np.int64]:
        """The tokens at a place."""
        return np.flatnonzero(np.array(self.labels) == place)

    def wanted(self, span: tuple[int, int]) -> NDArray[np.int64]:
        """Tokens of a call whose logits are compared: spread over it, and always the last."""
        count = min(span[1] - span[0], LOGITS_A_CALL)
        return np.linspace(span[1] - 1, span[0], count).round().astype(np.int64)[::-1].copy()

    def feeds(self, config: ModelConfig) -> Iterator[tuple[tuple[int, int], dict[str, np.ndarray]]]:
        """For each call its span, and all that a part is fed with beside hidden states."""
        for start, stop in self.spans:
            feed = dict(position_feeds(self.layout.tokens(start, stop).batched()))
            if not config.temporal.mask.is_prefix:
                frame_ids = np.full((1, self.length), TEXT, dtype=np.int64)
                frame_ids[0, :stop] = self.layout.frame_ids[:stop]
                feed[KEY_FRAME_IDS] = frame_ids
            yield (start, stop), feed


def layer_sequences(
    config: ModelConfig, max_frames: int, max_length: int, seed: int = 0
) -> list[LayerSequence]:
    """The sequences that the profile has room for.

    Raises:
        UnsupportedEnvironment: it has room for none.
    """
    random = np.random.default_rng(seed)
    m = config.tokens_per_frame
    few = min(3, max_frames)
    frames = next(
        (x for x in range(max_frames, 0, -1) if 4 + x * m + 2 + DECODE_STEPS <= max_length), 0
    )
    drafts: list[tuple[list[Segment], int]] = []
    if frames:
        prompt = 4 + frames * m
        fill = max(2, min(max_length, MOST_TOKENS) - prompt - DECODE_STEPS)
        drafts.append(([Text(4), Clip(frames, m), Text(fill)], DECODE_STEPS))
    several: list[Segment] = [
        *(Clip(min(2, max_frames), m), Text(3), Clip(1, m), Text(2), Clip(few, m), Text(4))
    ]
    if sum(x.length for x in several) <= max_length:
        drafts.append((several, 0))
    if not drafts:
        raise UnsupportedEnvironment(
            "the bundle's profile is too small for a frame between text",
            hint="build with a larger --max-length",
        )
    return [_draw(config, segments, steps, random) for segments, steps in drafts]


def places_of(sequences: Sequence[LayerSequence]) -> tuple[str, ...]:
    """The places of all sequences in order: text before, frames, text between, after, decode."""
    found = {label for sequence in sequences for label in sequence.labels}
    frames = sorted((x for x in found if x.startswith("frame ")), key=lambda x: int(x.split()[1]))
    ordered = [BEFORE, *frames, BETWEEN, AFTER, DECODE]
    return tuple(x for x in ordered if x in found)


def _draw(
    config: ModelConfig, segments: list[Segment], steps: int, random: np.random.Generator
) -> LayerSequence:
    layout, _ = lay_out([*segments, Text(steps)], config.temporal)
    prompt = layout.length - steps
    ids = random.integers(0, config.text.vocab_size, layout.length)
    ids[layout.frame_ids >= 0] = TEXT
    size = config.vision.image_size
    frames = int(layout.frame_ids.max()) + 1
    return LayerSequence(
        token_ids=ids,
        pixel_values=random.standard_normal((frames, 3, size, size)).astype(np.float32),
        layout=layout,
        labels=_labels(layout.frame_ids, prompt),
        spans=tuple(_spans(config, layout, prompt, cut=steps > 0)),
    )


def _labels(frame_ids: NDArray[np.int64], prompt: int) -> tuple[str, ...]:
    visual = np.flatnonzero(frame_ids >= 0)
    first, last = int(visual[0]), int(visual[-1])

    def label(index: int) -> str:
        if frame_ids[index] >= 0:
            return f"frame {frame_ids[index] + 1}"
        if index >= prompt:
            return DECODE
        return BEFORE if index < first else AFTER if index > last else BETWEEN

    return tuple(label(index) for index in range(len(frame_ids)))


def _spans(
    config: ModelConfig, layout: Layout, prompt: int, *, cut: bool
) -> Iterator[tuple[int, int]]:
    """Prefill calls, of whole frames, and a call for each later token."""
    mask = config.temporal.mask
    most = min(PREFILL_TOKENS, -(-prompt // LEAST_CALLS)) if cut else PREFILL_TOKENS
    most = max(most, config.tokens_per_frame) if mask.allows_frame_chunks else prompt
    yield from frame_chunks(layout.tokens(0, prompt), mask, most)
    yield from ((step, step + 1) for step in range(prompt, layout.length))
