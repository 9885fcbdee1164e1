# SPDX-License-Identifier: Apache-2.0
"""Choosing tokens: greedy, or by sampling with temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Self

import numpy as np
from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from tc_export.config import Config
from tc_export.engine.batch import DecoderBatch


class GenerationConfig(Config):
    """How an answer is generated. Temperature 0 is greedy.

    Raises:
        UsageError: a value makes no sense, or there is no such key; every wrong one is named.
    """

    max_new_tokens: int = Field(default=128, gt=0)
    temperature: float = Field(default=0.0, ge=0.0)
    top_k: int = Field(default=0, ge=0, description="0 keeps all tokens")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        """A user of the package makes one by its name, and gets an error of the package's."""
        try:
            return check(values)
        except ValidationError as error:
            raise cls.refusal(error, "what was given") from error


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
    batch: DecoderBatch,
    logits_BV: np.ndarray,
    embed: Callable[[list[int]], np.ndarray],
    end_tokens: Collection[int],
    config: GenerationConfig,
) -> Iterator[list[int | None]]:
    """Yield the next token of each sequence [B], step by step, from the prompts' last logits on.

    Where a sequence has ended it is None: an end token is not yielded. `embed` gives [S, E] for S
    tokens. Each sequence draws from the seed by itself, so that its answer does not depend on
    those beside it.
    """
    randoms = [np.random.default_rng(config.seed) for _ in logits_BV]
    going = [True] * len(randoms)
    for index in range(config.max_new_tokens):
        tokens = [
            _unless_end(choose(logits_V, config, random), end_tokens) if goes else None
            for goes, logits_V, random in zip(going, logits_BV, randoms, strict=True)
        ]
        going = [token is not None for token in tokens]
        if not any(going):
            return
        yield tokens
        if index + 1 < config.max_new_tokens:
            logits_BV = batch.append([embed([] if token is None else [token]) for token in tokens])


def _unless_end(token: int, end_tokens: Collection[int]) -> int | None:
    return None if token in end_tokens else token
