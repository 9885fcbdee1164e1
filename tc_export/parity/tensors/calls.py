# SPDX-License-Identifier: Apache-2.0
"""Scenarios as the calls of a decoder: what it is fed, in which chunks, and what is wanted of it.

Axes: S tokens, E channels, F frames, m tokens a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from tc_export.contracts.graph_io import (
    INPUTS_EMBEDS,
    KEY_FRAME_IDS,
    LOGITS_A_CALL,
    LOGITS_INDICES,
    PREFILL_TOKENS,
)
from tc_export.dtypes import DType, round_to
from tc_export.engine.session import position_feeds
from tc_export.model.positions import TEXT, Layout, Text, frame_chunks, lay_out
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.random_cache import COMPUTED_TOKENS, RandomCache
from tc_export.parity.sequences import GreedyAnswer, TokenSequence
from tc_export.parity.tensors.scenario import Scenario
from tc_export.parity.tensors.sides import Calls, Feed


class CallMaker:
    """Makes calls whose numbers are rounded to the decoder's format."""

    def __init__(
        self, truth: LayerwiseModel, dtype: DType, embeds_type: np.dtype[np.generic]
    ) -> None:
        """Embed with the truth's table; the graph is fed with `embeds_type`."""
        self._truth = truth
        self._config = truth.config
        self._dtype = dtype
        self._embeds_type = embeds_type

    def prompt(self, scenario: Scenario, features: np.ndarray) -> np.ndarray:
        """Embeddings [S, E] of a prompt whose visual places are -1; features are [F, m, E]."""
        embeds = self._truth.embed(np.maximum(scenario.token_ids, 0))
        embeds[scenario.token_ids == TEXT] = features.reshape(-1, features.shape[-1])
        return embeds

    def judged(self, scenario: Scenario, prompt: np.ndarray) -> Calls:
        """The prompt and teacher-forced decode steps; many logits of each call."""
        return self._calls(scenario, prompt, scenario.forced_tokens, LOGITS_A_CALL)

    def answering(self, scenario: Scenario, features: np.ndarray, answer: GreedyAnswer) -> Calls:
        """The prompt with the engine's own features, and the truth's answer after it."""
        prompt = self.prompt(scenario, features.astype(np.float64))
        return self._calls(scenario, prompt, np.array(answer.tokens[:-1]), 1)

    def _calls(
        self, scenario: Scenario, prompt: np.ndarray, tokens: np.ndarray, logits_a_call: int
    ) -> Calls:
        embeds = round_to(np.concatenate([prompt, self._truth.embed(tokens)]), self._dtype)
        segments = [*scenario.segments, Text(len(tokens))]
        layout, _ = lay_out(segments, self._config.temporal, scenario.start)
        feeds, wanted = [], []
        for start, stop in self._spans(scenario, layout):
            # All of a short call, evenly spread over a long one, and always the last.
            rows = min(stop - start, logits_a_call)
            indices = np.linspace(stop - start - 1, 0, rows).round().astype(np.int64)[::-1].copy()
            wanted.append(start + indices)
            feeds.append(self._feed(embeds, layout, start, stop, indices))
        sequence = TokenSequence(
            embeds=embeds,
            layout=layout,
            logits_indices=np.concatenate(wanted),
            past=self._past(scenario),
        )
        return Calls(feeds=feeds, rows=sequence.rows, pasts=(sequence.past,), sequence=sequence)

    def _past(self, scenario: Scenario) -> RandomCache | None:
        if not scenario.rows_before:
            return None
        return RandomCache(
            config=self._config,
            computed=self._computed_rows,
            dtype=self._dtype,
            rows=scenario.rows_before,
        )

    @cached_property
    def _computed_rows(self) -> list[tuple[np.ndarray, np.ndarray]]:
        random = np.random.default_rng(0)
        tokens = random.integers(0, self._config.text.vocab_size, COMPUTED_TOKENS)
        return self._truth.caches(round_to(self._truth.embed(tokens), self._dtype))

    def _spans(self, scenario: Scenario, layout: Layout) -> Iterator[tuple[int, int]]:
        """Each prefill chunk, then each decode step."""
        prompt, mask = scenario.length, self._config.temporal.mask
        chunk = scenario.chunk_tokens or PREFILL_TOKENS
        if not mask.allows_frame_chunks:
            chunk = prompt
        chunk = max(chunk, self._config.tokens_per_frame)
        yield from frame_chunks(layout.tokens(0, prompt), mask, chunk)
        yield from ((step, step + 1) for step in range(prompt, layout.length))

    def _feed(
        self, embeds: np.ndarray, layout: Layout, start: int, stop: int, wanted: np.ndarray
    ) -> Feed:
        feed = {
            INPUTS_EMBEDS: embeds[None, start:stop].astype(self._embeds_type),
            LOGITS_INDICES: wanted[None],
            **position_feeds(layout.tokens(start, stop).batched()),
        }
        if not self._config.temporal.mask.is_prefix:
            rows = int(layout.position_ids[-1]) + 1
            frame_ids = np.full((1, rows), TEXT, dtype=np.int64)
            frame_ids[0, layout.position_ids[:stop]] = layout.frame_ids[:stop]
            feed[KEY_FRAME_IDS] = frame_ids
        return feed
