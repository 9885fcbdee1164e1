# SPDX-License-Identifier: Apache-2.0
"""Choosing tokens: greedy, or by sampling with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
from pydantic import Field

from tc_export.config import Config
from tc_export.engine.session import DecoderSession


class GenerationConfig(Config):
    """How an answer is generated. Temperature 0 is greedy."""

    max_new_tokens: int = Field(default=128, gt=0)
    temperature: float = Field(default=0.0, ge=0.0)
    top_k: int = Field(default=0, ge=0, description="0 keeps all tokens")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)


def choose(logits_V: np.ndarray, config: GenerationConfig, random: np.random.Generator) -> int:
    """The next token."""
    if config.temperature == 0.0:
        return int(np.argmax(logits_V))
    order = np.argsort(-logits_V, kind="stable")
    if config.top_k:
        order = order[: config.top_k]
    scaled = logits_V[order].astype(np.float64) / config.temperature
    probability = np.exp(scaled - scaled[0])
    probability /= probability.sum()
    # The smallest set of tokens whose probabilities reach top_p; never empty.
    kept = int(np.searchsorted(np.cumsum(probability), config.top_p)) + 1
    probability = probability[:kept] / probability[:kept].sum()
    return int(random.choice(order[:kept], p=probability))


def generate(
    session: DecoderSession,
    logits_V: np.ndarray,
    embed: Callable[[int], np.ndarray],
    end_tokens: Collection[int],
    config: GenerationConfig,
) -> Iterator[int]:
    """Yield token after token, from the prompt's last logits on; an end token is not yielded."""
    random = np.random.default_rng(config.seed)
    for index in range(config.max_new_tokens):
        token = choose(logits_V, config, random)
        if token in end_tokens:
            return
        yield token
        if index + 1 < config.max_new_tokens:
            logits_V = session.step(embed(token))
