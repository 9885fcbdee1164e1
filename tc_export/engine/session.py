# SPDX-License-Identifier: Apache-2.0
"""One sequence in a decoder engine: prefill in frame-aligned chunks, then token by token.

Axes: S tokens, E channels, V vocabulary, C cache rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import (
    INPUTS_EMBEDS,
    KEY_FRAME_IDS,
    KV_END,
    LOGITS,
    LOGITS_INDICES,
    POSITION_IDS,
    PREFILL_TOKENS,
    TEMPORAL_IDS,
)
from tc_export.engine.interface import Engine
from tc_export.engine.kv_cache import KvCache
from tc_export.model.positions import TEXT, Cursor, Layout, Segment, Text, frame_chunks, lay_out


class DecoderSession:
    """A sequence and its cache. An engine serves any number of sessions, in any order of calls.

    Attributes:
        engine: what runs it.
        config: the model's.
        chunk_tokens: most tokens of a prefill call.
    """

    def __init__(
        self,
        engine: Engine,
        config: ModelConfig,
        rows: int,
        chunk_tokens: int = PREFILL_TOKENS,
    ) -> None:
        """Start an empty sequence of at most `rows` tokens.

        `chunk_tokens` bounds a prefill call: whole frames, and at least one.

        Raises:
            UsageError: the engine was built for fewer rows.
        """
        self.engine = engine
        self.config = config
        self.chunk_tokens = max(chunk_tokens, config.tokens_per_frame)
        self._cursor = Cursor()
        self._cache = engine.new_cache(rows)
        self._key_frame_ids = np.full((1, rows), TEXT, dtype=np.int64)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cursor.position

    @property
    def cache(self) -> KvCache:
        """The cache of this session."""
        return self._cache

    @property
    def cursor(self) -> Cursor:
        """Where the next token will stand: a place that `rewind` can come back to."""
        return self._cursor

    def rewind(self, cursor: Cursor) -> None:
        """Forget every token from `cursor` on, which is one that this session has had.

        Raises:
            UsageError: the session has never been so far.
        """
        self._cache.rewind(cursor.position)
        self._cursor = cursor

    def fork(self) -> DecoderSession:
        """A session of its own that goes on from here; its cache is a copy on the device."""
        fork = DecoderSession.__new__(DecoderSession)
        fork.__dict__ |= self.__dict__
        fork._cache = self._cache.fork()
        fork._key_frame_ids = self._key_frame_ids.copy()
        return fork

    def prefill(
        self,
        embeds_SE: np.ndarray,
        segments: Sequence[Segment],
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> np.ndarray:
        """Append a prompt, and return the logits [V] of its last token.

        A call that fails leaves the session where it was before.

        Raises:
            UsageError: the sequence would exceed the cache, or the mask forbids the chunks.
        """
        layout, cursor = lay_out(segments, self.config.temporal, self._cursor)
        if layout.length != len(embeds_SE) or layout.length == 0:
            raise ValueError(f"{len(embeds_SE)} embeddings for {layout.length} tokens")
        self._cache.check_room(layout.length)
        logits = np.empty(0)
        mask = self.config.temporal.mask
        chunk_tokens = self.chunk_tokens if mask.allows_frame_chunks else layout.length
        for start, stop in frame_chunks(layout, mask, chunk_tokens):
            last = np.array([[stop - start - 1]])
            logits = self._run(embeds_SE[start:stop], layout.tokens(start, stop), last)
            advance(stop - start)
        self._cache.extend(layout.length)
        self._cursor = cursor
        return np.asarray(logits[0])

    def step(self, embed_E: np.ndarray) -> np.ndarray:
        """Append one text token, and return its logits [V]."""
        return self.prefill(embed_E[None], [Text(1)])

    def _run(self, embeds_SE: np.ndarray, layout: Layout, logits_indices: np.ndarray) -> np.ndarray:
        """Run the engine on tokens of the sequence; return logits [rows wanted, V]."""
        feeds = {INPUTS_EMBEDS: embeds_SE[None], LOGITS_INDICES: logits_indices}
        feeds |= position_feeds(layout.batched())
        if KEY_FRAME_IDS in self.engine.inputs:
            self._key_frame_ids[0, layout.position_ids] = layout.frame_ids
            feeds[KEY_FRAME_IDS] = self._key_frame_ids
        logits: np.ndarray = self.engine.run(feeds, self._cache)[LOGITS][0]
        return logits


def position_feeds(layout: Layout) -> dict[str, np.ndarray]:
    """The decoder's inputs that say where tokens stand and what they see; layout is [B, S]."""
    return {
        POSITION_IDS: layout.position_ids,
        TEMPORAL_IDS: layout.temporal_ids,
        KV_END: layout.kv_end,
    }
