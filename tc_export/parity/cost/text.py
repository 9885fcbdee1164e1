# SPDX-License-Identifier: Apache-2.0
"""What two models make of the same passages of text: perplexity of each, and their divergence.

Both go layer by layer, in float32, with one layer's weights in memory. Logits are made of one
passage at a time, since those of all would fill gigabytes.

Axes: S tokens of a passage, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from tc_export.checkpoint.reader import Checkpoint
from tc_export.dtypes import DType
from tc_export.model.positions import Text, lay_out
from tc_export.parity.cost.result import NotMeasured, TextCost, log_probabilities
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.sequences import TokenSequence
from tc_export.tasks.passages import TextTokenizer, knows_text, passages_of

PASSAGES = 16

FEW_WORDS = "the tokenizer does not know ordinary text"


class Reader(Protocol):
    """One who has read the passages."""

    def log_probabilities(self, passage: int) -> np.ndarray:
        """[S, V]: of the token after each."""


class CheckpointReader:
    """A checkpoint that reads passages in float32."""

    def __init__(self, checkpoint: Checkpoint, passages: Sequence[np.ndarray]) -> None:
        """Take the token ids [S] of each passage through all layers."""
        model = LayerwiseModel(checkpoint, DType.FLOAT32)
        temporal = checkpoint.config.model.temporal
        sequences = [
            TokenSequence(
                embeds=model.embed(ids),
                layout=lay_out([Text(len(ids))], temporal)[0],
                logits_indices=np.arange(len(ids)),
            )
            for ids in passages
        ]
        layers = range(checkpoint.config.model.text.num_hidden_layers)
        self._hidden = model.hidden(sequences, layers)
        self._model = model

    def log_probabilities(self, passage: int) -> np.ndarray:
        """See `Reader`."""
        (logits,) = self._model.head([self._hidden[passage]])
        return log_probabilities(logits)


def measure_text(
    unquantised: Checkpoint, quantised: Checkpoint, tokenizer: TextTokenizer
) -> TextCost | NotMeasured:
    """Let both read passages of the manual that comes with Python, those that are held out.

    It says nothing of a model that knows no ordinary text, or whose tokenizer does not.
    """
    if not knows_text(tokenizer):
        return NotMeasured(FEW_WORDS)
    passages = passages_of(tokenizer, PASSAGES, held_out=True)
    before, after = (CheckpointReader(x, passages) for x in (unquantised, quantised))
    found = compare_readers(before, after, passages)
    words = len(unquantised.embedding.as_array())
    if found.unquantised_perplexity >= words:
        return NotMeasured(
            f"of {words} tokens the unquantised model predicts the next worse than one who guesses "
            f"(perplexity {found.unquantised_perplexity:.3g})"
        )
    return found


def compare_readers(
    unquantised: Reader, quantised: Reader, passages: Sequence[np.ndarray]
) -> TextCost:
    """Hold what both think of each token beside each other."""
    before_losses, after_losses, divergences, same = [], [], [], []
    for number, ids in enumerate(passages):
        p_SV, q_SV = (x.log_probabilities(number) for x in (unquantised, quantised))
        places = np.arange(len(ids) - 1)
        before_losses.append(-p_SV[places, ids[1:]])
        after_losses.append(-q_SV[places, ids[1:]])
        divergences.append(np.sum(np.exp(p_SV) * (p_SV - q_SV), axis=1))
        same.append(p_SV.argmax(axis=1) == q_SV.argmax(axis=1))
    before, after = (np.concatenate(x) for x in (before_losses, after_losses))
    return TextCost(
        passages=len(passages),
        tokens=sum(map(len, passages)),
        unquantised_perplexity=float(np.exp(before.mean())),
        quantised_perplexity=float(np.exp(after.mean())),
        kl=float(np.concatenate(divergences).mean()),
        same_token=float(np.concatenate(same).mean()),
    )
