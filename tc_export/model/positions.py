# SPDX-License-Identifier: Apache-2.0
"""Positions and masks of a token sequence: pure functions of its segments (NumPy only).

A sequence is text and clips in turn. For every token this module says
- `position_ids`, n: its index, and the cache row that it is written to;
- `temporal_ids`, T: the index that counts a whole frame as one;
- `frame_ids`: which frame it belongs to, counted over all clips, or -1 for text;
- `kv_end`: how many tokens, from the first on, it may attend to.

Everything is computed from a `Cursor`, so a sequence may also be laid out piece by piece: as
frames arrive, or token by token while decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tc_export.config import AfterClip, AttentionMask, TemporalConfig
from tc_export.contracts.ops import PADDING
from tc_export.errors import UsageError

TEXT = -1


@dataclass(frozen=True)
class Text:
    """A run of text tokens."""

    length: int


@dataclass(frozen=True)
class Clip:
    """A run of visual tokens: `frames` frames of `tokens_per_frame` each. An image is one frame.

    `continues` says that these are further frames of the clip that was laid out just before.
    """

    frames: int
    tokens_per_frame: int
    continues: bool = False

    @property
    def length(self) -> int:
        """Visual tokens in the clip."""
        return self.frames * self.tokens_per_frame


Segment = Text | Clip


@dataclass(frozen=True)
class Cursor:
    """Where the next text token or clip stands: its n, its T, and the id of the next frame."""

    position: int = 0
    temporal: int = 0
    frame: int = 0


@dataclass(frozen=True)
class Layout:
    """Positions and mask of tokens, each array of shape [S], or [B, S] for a batch."""

    position_ids: NDArray[np.int64]
    temporal_ids: NDArray[np.int64]
    frame_ids: NDArray[np.int64]
    kv_end: NDArray[np.int32]

    @property
    def length(self) -> int:
        """Tokens in the layout, padding included."""
        return int(self.position_ids.shape[-1])

    def tokens(self, start: int, stop: int) -> Layout:
        """Tokens [start, stop) of the layout."""
        return self._map(lambda array: array[..., start:stop])

    def batched(self) -> Layout:
        """The layout as a batch of one."""
        return self._map(lambda array: array[None])

    def _map(self, function: Callable[[NDArray[Any]], NDArray[Any]]) -> Layout:
        return Layout(
            position_ids=function(self.position_ids),
            temporal_ids=function(self.temporal_ids),
            frame_ids=function(self.frame_ids),
            kv_end=function(self.kv_end),
        )


def lay_out(
    segments: Iterable[Segment], temporal: TemporalConfig, start: Cursor | None = None
) -> tuple[Layout, Cursor]:
    """Lay out the segments from `start` on, and say where the next token will stand.

    A clip may be laid out in parts, each later one with `continues` set, unless the mask is
    `full_visual`: there the earlier part already sees the later one.
    """
    cursor = start or Cursor()
    parts: list[Layout] = []
    for segment in segments:
        part, cursor = (
            _lay_out_text(segment, cursor)
            if isinstance(segment, Text)
            else _lay_out_clip(segment, cursor, temporal)
        )
        parts.append(part)
    return _concatenate(parts), cursor


def _lay_out_text(text: Text, start: Cursor) -> tuple[Layout, Cursor]:
    if text.length < 0:
        raise UsageError(f"a text needs a length of 0 or more, not {text.length}")
    step = np.arange(text.length, dtype=np.int64)
    position_ids = start.position + step
    layout = Layout(
        position_ids=position_ids,
        temporal_ids=start.temporal + step,
        frame_ids=np.full(text.length, TEXT, dtype=np.int64),
        kv_end=(position_ids + 1).astype(np.int32),
    )
    return layout, Cursor(
        position=start.position + text.length,
        temporal=start.temporal + text.length,
        frame=start.frame,
    )


def _lay_out_clip(clip: Clip, start: Cursor, temporal: TemporalConfig) -> tuple[Layout, Cursor]:
    if clip.frames < 1 or clip.tokens_per_frame < 1:
        raise UsageError(f"a clip needs at least one frame of at least one token, not {clip}")
    if clip.continues and not temporal.mask.allows_frame_chunks:
        raise UsageError(
            f"the mask {temporal.mask} lets a frame see later frames, so a clip cannot be laid out "
            "in parts",
            hint="lay it out at once, or use frame_block_causal",
        )
    shared_with_last_frame = int(temporal.after_clip is AfterClip.SHARE)
    first_temporal = start.temporal + (shared_with_last_frame if clip.continues else 0)
    index = np.arange(clip.length, dtype=np.int64)
    frame = index // clip.tokens_per_frame
    position_ids = start.position + index
    match temporal.mask:
        case AttentionMask.CAUSAL:
            kv_end = position_ids + 1
        case AttentionMask.FULL_VISUAL:
            kv_end = np.full_like(index, start.position + clip.length)
        case AttentionMask.FRAME_BLOCK | AttentionMask.FRAME_BLOCK_CAUSAL:
            kv_end = start.position + (frame + 1) * clip.tokens_per_frame
    layout = Layout(
        position_ids=position_ids,
        temporal_ids=first_temporal + frame,
        frame_ids=start.frame + frame,
        kv_end=kv_end.astype(np.int32),
    )
    return layout, Cursor(
        position=start.position + clip.length,
        temporal=first_temporal + clip.frames - shared_with_last_frame,
        frame=start.frame + clip.frames,
    )


def _concatenate(parts: Sequence[Layout]) -> Layout:
    if not parts:
        return _lay_out_text(Text(0), Cursor())[0]
    return Layout(
        position_ids=np.concatenate([part.position_ids for part in parts]),
        temporal_ids=np.concatenate([part.temporal_ids for part in parts]),
        frame_ids=np.concatenate([part.frame_ids for part in parts]),
        kv_end=np.concatenate([part.kv_end for part in parts]),
    )


def pad(layouts: Sequence[Layout], side: Literal["left", "right"]) -> Layout:
    """Stack layouts into a batch [B, S], padded on one side.

    A padding token has position -1 (the cache's spare row), no frame, and sees nothing.
    """
    length = max(layout.length for layout in layouts)

    def stack(name: str, fill: int) -> NDArray[np.int64]:
        rows = []
        for layout in layouts:
            missing = length - layout.length
            width = (missing, 0) if side == "left" else (0, missing)
            rows.append(np.pad(getattr(layout, name), width, constant_values=fill))
        return np.stack(rows)

    return Layout(
        position_ids=stack("position_ids", PADDING),
        temporal_ids=stack("temporal_ids", PADDING),
        frame_ids=stack("frame_ids", TEXT),
        kv_end=stack("kv_end", 0).astype(np.int32),
    )


def frame_chunks(layout: Layout, mask: AttentionMask, max_tokens: int) -> list[tuple[int, int]]:
    """Cut a sequence [S] into spans [start, stop) of at most `max_tokens`, never inside a frame.

    Prefilling span after span gives what prefilling at once gives.

    Raises:
        UsageError: the mask looks ahead over the whole clip, or one frame exceeds `max_tokens`.
    """
    if layout.length <= max_tokens:
        return [(0, layout.length)] if layout.length else []
    has_clip = bool((layout.frame_ids != TEXT).any())
    if has_clip and not mask.allows_frame_chunks:
        raise UsageError(
            f"the mask {mask} lets a frame see later frames, so a clip cannot be prefilled in "
            f"parts; the sequence has {layout.length} tokens and a part holds {max_tokens}",
            hint="prefill it at once, or use frame_block_causal",
        )
    same_frame = (layout.frame_ids[1:] == layout.frame_ids[:-1]) & (layout.frame_ids[1:] != TEXT)
    boundaries = [*(np.flatnonzero(~same_frame) + 1).tolist(), layout.length]
    spans: list[tuple[int, int]] = []
    start = stop = 0
    for boundary in boundaries:
        if boundary - start > max_tokens and stop > start:
            spans.append((start, stop))
            start = stop
        if boundary - start > max_tokens:
            raise UsageError(
                f"a frame of {boundary - start} tokens does not fit a prefill of {max_tokens}"
            )
        stop = boundary
    spans.append((start, stop))
    return spans
