# SPDX-License-Identifier: Apache-2.0
"""Several sequences that go on from one session, each by text of its own, run as one batch.

What they have in common (a watched clip) is prefilled once, by the session. After it comes text
only, so there is no frame that a chunk might cut.

Axes: B sequences, S tokens, E channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tc_export.contracts.graph_io import INPUTS_EMBEDS, KEY_FRAME_IDS, LOGITS, LOGITS_INDICES
from tc_export.engine.interface import Engine
from tc_export.engine.session import DecoderSession, position_feeds
from tc_export.model.positions import TEXT, Text, lay_out, pad


def takes_batches(engine: Engine) -> bool:
    """True where a decoder takes any number of sequences at once, and not one alone."""
    return isinstance(engine.inputs[INPUTS_EMBEDS].shape[0], str)


class DecoderBatch:
    """Sequences of any lengths; the shorter ones are padded on the right."""

    def __init__(self, session: DecoderSession, count: int) -> None:
        """Start `count` sequences where `session` stands.

        One sequence alone writes behind the session's own rows, which every engine can do; several
        have a cache of their own, as large as `count` of the session's.
        """
        self._session = session
        self._cache = session.cache if count == 1 else session.cache.repeat(count)
        rows = session.cache.rows if count == 1 else session.cache.rows + 1
        # Only what a visual token sees depends on the frames of others, and there is none here.
        self._key_frame_ids = np.full((count, rows), TEXT, dtype=np.int64)
        self._cursors = [session.cursor] * count

    def rewind(self) -> None:
        """Go back to where the session stood at the start, with every sequence."""
        self._cursors = [self._session.cursor] * len(self._cursors)

    def append(
        self,
        embeds: Sequence[np.ndarray],
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> np.ndarray:
        """Append text to the sequences, and return the logits of the last token of each.

        Args:
            embeds: [S, E] for each sequence; S may be 0 where one has ended, but not for all. The
                last sequences may be left out.
            advance: called after each call of the engine with how many tokens it has read.

        Returns:
            Logits [B, V] of the sequences in `embeds`; of one with nothing to append they mean
            nothing.

        Raises:
            UsageError: a sequence would exceed its cache; none has changed then.
        """
        missing = len(self._cursors) - len(embeds)
        lengths = np.array([len(each) for each in embeds] + [0] * missing)
        laid_out = [
            lay_out([Text(length)], self._session.config.temporal, cursor)
            for length, cursor in zip(lengths.tolist(), self._cursors, strict=True)
        ]
        self._cache.check_holds(max(cursor.position for _, cursor in laid_out))
        layout = pad([each for each, _ in laid_out], "right")
        embeds_BSE = np.zeros((len(lengths), layout.length, embeds[0].shape[-1]), np.float32)
        for row, each in enumerate(embeds):
            embeds_BSE[row, : len(each)] = each
        last = np.maximum(lengths - 1, 0)
        chunk_tokens = max(1, self._session.chunk_tokens // len(lengths))
        found = []
        for start in range(0, layout.length, chunk_tokens):
            stop = min(start + chunk_tokens, layout.length)
            feeds = {
                INPUTS_EMBEDS: embeds_BSE[:, start:stop],
                LOGITS_INDICES: np.clip(last - start, 0, stop - start - 1)[:, None],
            }
            feeds |= position_feeds(layout.tokens(start, stop))
            if KEY_FRAME_IDS in self._session.engine.inputs:
                feeds[KEY_FRAME_IDS] = self._key_frame_ids
            found.append(self._session.engine.run(feeds, self._cache)[LOGITS][:, 0])
            advance(int(np.clip(lengths - start, 0, stop - start).sum()))
        self._cursors = [cursor for _, cursor in laid_out]
        # Of each sequence those of the chunk in which its last token was.
        rows = range(len(embeds))
        return np.stack([found[last[row] // chunk_tokens][row] for row in rows])
