# SPDX-License-Identifier: Apache-2.0
"""Asks one side the generated questions: an engine, or PyTorch behind the engine interface.

Every side sees the same pixels and the same prompt, by the bundle's own preprocessing and template,
and answers greedily.

Axes: F frames of a clip, S tokens, E channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from tc_export.config import ModelConfig
from tc_export.contracts.graph_io import PIXEL_VALUES, VISUAL_FEATURES
from tc_export.engine.interface import Engine
from tc_export.engine.session import DecoderSession
from tc_export.model.positions import Segment
from tc_export.tasks import Item, render

VISUAL_PLACE = -1
LONGEST_ANSWER = 6
"""Tokens of an answer at most: each is one short word, however finely a tokenizer cuts it."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a clip as engines read it.

    `pixel_values` [F, 3, H, W]; `token_ids` [S] have `VISUAL_PLACE` at visual tokens.
    """

    pixel_values: NDArray[np.float32]
    segments: tuple[Segment, ...]
    token_ids: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Language:
    """What stands around the engines, the same for every side.

    `prepare` takes frames [F, H, W, 3] and the question's text; `decode` takes token ids.
    """

    prepare: Callable[[NDArray[np.uint8], str], Question]
    decode: Callable[[Sequence[int]], str]
    end_tokens: Collection[int]

    def question(self, item: Item, image_size: int) -> Question:
        """Draw the item's clip, in pixels of a square's side, and prepare what is asked of it."""
        return self.prepare(render([item.clip], image_size)[0], item.question)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A greedy answer.

    `margin` is the smallest gap between the first and the second choice on the way: what it takes
    to turn the answer. `first_logits` [V] are those of its first token.
    """

    text: str
    margin: float
    first_logits: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Respondent:
    """One side: its engines, and its own token embedding, from ids [S] to [S, E]."""

    name: str
    config: ModelConfig
    vision: Engine
    decoder: Engine
    embed: Callable[[NDArray[np.int64]], np.ndarray]

    def replies(
        self, question: Question, orders: Sequence[Sequence[int]], language: Language
    ) -> list[Reply]:
        """Answer once for each order of the frames, which are watched only once."""
        feeds = {PIXEL_VALUES: question.pixel_values}
        features = self.vision.run(feeds)[VISUAL_FEATURES]
        return [self._reply(question, features[list(order)], language) for order in orders]

    def _reply(self, question: Question, features: np.ndarray, language: Language) -> Reply:
        token_ids = question.token_ids
        embeds_SE = self.embed(np.maximum(token_ids, 0)).copy()
        embeds_SE[token_ids == VISUAL_PLACE] = features.reshape(-1, features.shape[-1])
        rows = len(token_ids) + LONGEST_ANSWER
        session = DecoderSession(self.decoder, self.config, rows)
        logits_V = first_V = session.prefill(embeds_SE, question.segments)
        tokens: list[int] = []
        margin = inf
        while True:
            second, first = np.partition(logits_V, -2)[-2:]
            margin = min(margin, float(first - second))
            token = int(logits_V.argmax())
            if token in language.end_tokens:
                break
            tokens.append(token)
            if len(tokens) == LONGEST_ANSWER:
                break
            logits_V = session.step(self.embed(np.array([token]))[0])
        return Reply(text=language.decode(tokens).strip(), margin=margin, first_logits=first_V)
