# SPDX-License-Identifier: Apache-2.0
"""Perplexity and divergence on text, against their definitions and against transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tc_export.checkpoint.reader import open_checkpoint
from tc_export.parity.cost.result import NotMeasured
from tc_export.parity.cost.text import CheckpointReader, compare_readers, measure_text
from tc_export.runtime.tokenizer import Tokenizer
from tc_export.tasks.passages import PASSAGE_TOKENS, knows_text, passages_of
from tests.checkpoint.families import save_small
from tests.repository import DEMO_CHECKPOINT


class Written:
    """Thinks what it is told to."""

    def __init__(self, *probabilities: Sequence[Sequence[float]]) -> None:
        self._probabilities = probabilities

    def log_probabilities(self, passage: int) -> np.ndarray:
        return np.log(np.array(self._probabilities[passage], dtype=np.float64))


def test_the_definitions() -> None:
    passages = [np.array([0, 1, 1])]
    before = Written([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    after = Written([[0.6, 0.4], [0.25, 0.75], [0.8, 0.2]])
    found = compare_readers(before, after, passages)
    # The token after the first is 1, and so is the next; what comes after the last is not known.
    assert found.unquantised_perplexity == pytest.approx((0.8 * 0.5) ** -0.5)
    assert found.quantised_perplexity == pytest.approx((0.4 * 0.75) ** -0.5)
    kl = [
        0.2 * np.log(0.2 / 0.6) + 0.8 * np.log(0.8 / 0.4),
        0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75),
        0.9 * np.log(0.9 / 0.8) + 0.1 * np.log(0.1 / 0.2),
    ]
    assert found.kl == pytest.approx(np.mean(kl))
    assert found.same_token == pytest.approx(1 / 3)  # of the second both halves are as likely
    assert (found.passages, found.tokens) == (1, 3)


def test_a_model_compared_with_itself_costs_nothing() -> None:
    passages = [np.array([0, 1])]
    side = Written([[0.25, 0.75], [0.5, 0.5]])
    found = compare_readers(side, side, passages)
    assert (found.kl, found.same_token) == (0.0, 1.0)
    assert found.unquantised_perplexity == found.quantised_perplexity


def test_a_checkpoint_reads_as_transformers_does(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "source")
    ids = np.random.default_rng(3).integers(3, 40, size=(2, 9))
    reader = CheckpointReader(open_checkpoint(folder), list(ids))
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids)).logits
    expected = logits.log_softmax(-1).numpy()
    for number in range(2):
        np.testing.assert_allclose(reader.log_probabilities(number), expected[number], atol=2e-4)


def test_a_model_that_knows_no_text_is_not_judged_by_it() -> None:
    demo = open_checkpoint(DEMO_CHECKPOINT)
    found = measure_text(demo, demo, Tokenizer.load(DEMO_CHECKPOINT))
    assert isinstance(found, NotMeasured)
    assert "worse than one who guesses" in found.reason


class FewWords:
    """Knows four words, and calls all others unknown."""

    words = ("unknown", "the", "of", "a")

    def encode(self, text: str) -> list[int]:
        return [self.words.index(x) if x in self.words else 0 for x in text.split()]

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(self.words[x] for x in token_ids)


def test_a_tokenizer_of_few_words_reads_nothing() -> None:
    demo = open_checkpoint(DEMO_CHECKPOINT)
    assert not knows_text(FewWords())
    found = measure_text(demo, demo, FewWords())
    assert isinstance(found, NotMeasured)
    assert "ordinary text" in found.reason


class Letters:
    """A token for each character."""

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


def test_passages_that_are_held_out_are_others() -> None:
    assert knows_text(Letters())
    shown = passages_of(Letters(), 40)
    held_out = passages_of(Letters(), 40, held_out=True)
    assert {len(x) for x in (*shown, *held_out)} == {PASSAGE_TOKENS}
    texts = [{Letters().decode(x) for x in of} for of in (shown, held_out)]
    assert not texts[0] & texts[1]
    assert len(texts[0]) == len(texts[1]) == 40
