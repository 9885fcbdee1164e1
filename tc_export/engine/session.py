# SPDX-License-Identifier: Apache-2.0
"""One sequence in a decoder engine: prefill in frame-aligned chunks, then token by token.

Axes: S tokens, E channels, V vocabulary, C cache rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tc_export.config import ModelConfig
from tc_export.engine.interface import Buffer, Engine
from tc_export.errors import UsageError
from tc_export.model.positions import TEXT, Cursor, Layout, Segment, Text, frame_chunks, lay_out

DEFAULT_CHUNK_TOKENS = 1024
"""Bounds the mask and the scores that a runtime without our kernels builds in one call."""


class DecoderSession:
    """A sequence and its cache, which is bound to the engine once and updated in place."""

    def __init__(
        self,
        engine: Engine,
        config: ModelConfig,
        rows: int,
        chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    ) -> None:
        """Bind a cache of `rows` tokens to `engine`; prefill at most `chunk_tokens` a call."""
        self._engine = engine
        self._config = config
        self._rows = rows
        self._chunk_tokens = max(chunk_tokens, config.tokens_per_frame)
        self._cursor = Cursor()
        self._cache = bind_cache(engine, config, rows)
        self._key_frame_ids = np.full((1, rows), TEXT, dtype=np.int64)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cursor.position

    def prefill(
        self,
        embeds_SE: np.ndarray,
        segments: Sequence[Segment],
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> np.ndarray:
        """Append a prompt, and return the logits [V] of its last token.

        Raises:
            UsageError: the sequence would exceed the cache, or the mask forbids the chunks.
        """
        layout, cursor = lay_out(segments, self._config.temporal, self._cursor)
        if layout.length != len(embeds_SE) or layout.length == 0:
            raise ValueError(f"{len(embeds_SE)} embeddings for {layout.length} tokens")
        self._check_room(cursor.position)
        logits = np.empty(0)
        mask = self._config.temporal.mask
        chunk_tokens = self._chunk_tokens if mask.allows_frame_chunks else layout.length
        for start, stop in frame_chunks(layout, mask, chunk_tokens):
            last = np.array([[stop - start - 1]])
            logits = self.run(embeds_SE[start:stop], layout.tokens(start, stop), last)
            advance(stop - start)
        self._cursor = cursor
        return np.asarray(logits[0])

    def step(self, embed_E: np.ndarray) -> np.ndarray:
        """Append one text token, and return its logits [V]."""
        return self.prefill(embed_E[None], [Text(1)])

    def run(self, embeds_SE: np.ndarray, layout: Layout, logits_indices: np.ndarray) -> np.ndarray:
        """Run the engine on tokens of the sequence; return logits [rows wanted, V].

        The caller keeps the positions: they are those of `layout`.
        """
        feeds = {"inputs_embeds": embeds_SE[None], "logits_indices": logits_indices}
        feeds |= position_feeds(layout.batched())
        if "key_frame_ids" in self._engine.inputs:
            self._key_frame_ids[0, layout.position_ids] = layout.frame_ids
            feeds["key_frame_ids"] = self._key_frame_ids
        logits: np.ndarray = self._engine.run(feeds)["logits"][0]
        return logits

    def _check_room(self, length: int) -> None:
        if length > self._rows:
            raise UsageError(
                f"the sequence needs {length} tokens and the cache holds {self._rows}",
                hint="use fewer frames or a shorter question, or build with a larger --max-length",
            )


def bind_cache(engine: Engine, config: ModelConfig, rows: int, batch: int = 1) -> list[Buffer]:
    """Allocate a cache, each part bound to its input and its output: it stays in place.

    Raises:
        UsageError: the engine was built for fewer rows.
    """
    text = config.text
    shape = (batch, text.num_key_value_heads, cache_rows(engine, rows), text.head_dim)
    buffers = []
    for layer in range(text.num_hidden_layers):
        for part in ("key", "value"):
            past = f"past_key_values.{layer}.{part}"
            buffer = engine.allocate(past, shape)
            engine.bind(past, buffer)
            engine.bind(f"present.{layer}.{part}", buffer)
            buffers.append(buffer)
    return buffers


def cache_rows(engine: Engine, wanted: int) -> int:
    """Rows of the cache: those wanted, or all where the engine was built for one size.

    Raises:
        UsageError: the engine was built for fewer.
    """
    match engine.inputs["past_key_values.0.key"].shape:
        case (_, _, int(built), _):
            if built < wanted:
                raise UsageError(
                    f"a cache of {wanted} tokens was asked for, and the engine holds {built}",
                    hint="use fewer frames, or build with a larger --max-length",
                )
            return built
        case _:  # dynamic
            return wanted


def position_feeds(layout: Layout) -> dict[str, np.ndarray]:
    """The decoder's inputs that say where tokens stand and what they see; layout is [B, S]."""
    return {
        "position_ids": layout.position_ids,
        "temporal_ids": layout.temporal_ids,
        "kv_end": layout.kv_end,
    }
