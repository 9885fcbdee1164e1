# SPDX-License-Identifier: Apache-2.0
"""Passages of ordinary text: the manual that comes with Python, cut into equal lengths.

Every second of its topics is for calibration, and the others are held out: what is measured on them
was never looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pydoc_data.topics import topics
from typing import Protocol

import numpy as np

PASSAGE_TOKENS = 128

_PROBE_CHARACTERS = 4000
_LEAST_KNOWN = 0.95  # of words; a tokenizer may spell a few otherwise


class TextTokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""


def passages_of(
    tokenizer: TextTokenizer, count: int, *, held_out: bool = False
) -> list[np.ndarray]:
    """Token ids [`PASSAGE_TOKENS`] of so many passages, or as many as there are."""
    ids = np.array(tokenizer.encode(_text(held_out)), dtype=np.int64)
    most = len(ids) // PASSAGE_TOKENS
    starts = np.linspace(0, most - 1, min(count, most)).astype(int) * PASSAGE_TOKENS
    return [ids[start : start + PASSAGE_TOKENS] for start in starts]


def knows_text(tokenizer: TextTokenizer) -> bool:
    """Whether ordinary text survives the tokenizer: one of few words makes `unknown` of it."""
    probe = _text(held_out=True)[:_PROBE_CHARACTERS]
    before, after = (
        Counter(text.split()) for text in (probe, tokenizer.decode(tokenizer.encode(probe)))
    )
    return (before & after).total() >= _LEAST_KNOWN * before.total()


def _text(held_out: bool) -> str:
    return "\n\n".join([text for _, text in sorted(topics.items())][int(held_out) :: 2])
