# SPDX-License-Identifier: Apache-2.0
"""Real language: with gamma = 0 and the causal mask, our decoder answers as transformers does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from tc_export.checkpoint.reader import open_checkpoint
from tc_export.config import AttentionMask, ModelSettings, TemporalConfig
from tc_export.model.positions import Text, lay_out
from tc_export.model.tc_llava import TcLlava
from tests.checkpoint.real_language import real_language_checkpoint

PROMPT = "The capital of France is"
NEW_TOKENS = 12
STOCK = ModelSettings(temporal=TemporalConfig(gamma=0.0, mask=AttentionMask.CAUSAL))


@pytest.fixture(scope="module")
def folder() -> Path:
    return real_language_checkpoint()


def logits_of(model: TcLlava, tokens: Tensor) -> Tensor:
    """Logits [S, V] of a text prompt [1, S], prefilled at once."""
    length = tokens.shape[1]
    layout, _ = lay_out([Text(length)], model.config.temporal)
    logits, _ = model.decoder(
        model.embed_tokens(tokens),
        torch.from_numpy(layout.position_ids)[None],
        torch.from_numpy(layout.temporal_ids)[None],
        torch.from_numpy(layout.kv_end)[None],
        torch.arange(length)[None],
        model.new_cache(1, length),
    )
    return logits[0]


@torch.no_grad()
def test_the_same_logits_and_the_same_greedy_text(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = open_checkpoint(folder, STOCK).load_model()
    theirs = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    tokens = tokenizer(PROMPT, return_tensors="pt").input_ids
    prompt_length = tokens.shape[1]
    for _ in range(NEW_TOKENS):
        tokens = torch.cat((tokens, logits_of(ours, tokens)[-1:].argmax(-1, keepdim=True)), dim=1)
    answer = tokenizer.decode(tokens[0, prompt_length:])
    assert "Paris" in answer

    # Teacher forcing: transformers reads our answer; its greedy choice must be ours everywhere.
    expected = theirs(input_ids=tokens).logits[0]
    chosen = expected[prompt_length - 1 : -1].argmax(-1)
    assert tokenizer.decode(chosen) == answer
    actual = logits_of(ours, tokens)
    # Both compute in float32 and differ in the order of sums, over 30 layers.
    assert (actual - expected).abs().max() <= 64 * torch.finfo().eps * expected.abs().max()
