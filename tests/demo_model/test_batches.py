# SPDX-License-Identifier: Apache-2.0
"""Batches: the same logits as one item at a time, over all frames, with no padding."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast

from tc_export.config import AttentionMask, ModelConfig, TemporalConfig
from tc_export.demo_model.batches import Batcher, normalise, predict
from tc_export.demo_model.config import tiny_model
from tc_export.demo_model.evaluation import accuracy
from tc_export.demo_model.tokenizer import EOS, PROMPT, VIDEO
from tc_export.demo_model.trainer import new_model
from tc_export.model.positions import Clip, Text, lay_out
from tc_export.model.tc_llava import TcLlava
from tc_export.tasks import Item, Kind, Split, make_item, make_items, render


def logits_of_one(
    model: TcLlava, tokenizer: PreTrainedTokenizerFast, item: Item
) -> tuple[torch.Tensor, list[int]]:
    """Logits of every token of the prompt and the answer, the plain way; and the tokens."""
    config = model.config
    text = PROMPT.format(question=item.question) + f" {item.answer}{EOS}"
    before, after = text.split(VIDEO)
    begin = tokenizer(before)["input_ids"]
    end = tokenizer(after, add_special_tokens=False)["input_ids"]
    video = tokenizer.convert_tokens_to_ids(VIDEO)
    clip = Clip(8, config.tokens_per_frame)
    tokens = [*begin, *[video] * clip.length, *end]
    layout, _ = lay_out((Text(len(begin)), clip, Text(len(end))), config.temporal)
    batch = layout.batched()
    pixels = normalise(render([item.clip], config.vision.image_size)[0])
    embeds = model.embed(torch.tensor([tokens]), pixels, video)
    logits, _ = model.decoder(
        embeds,
        torch.from_numpy(batch.position_ids),
        torch.from_numpy(batch.temporal_ids),
        torch.from_numpy(batch.kv_end),
        torch.arange(len(tokens))[None],
        model.new_cache(1, len(tokens)),
        torch.from_numpy(batch.frame_ids),
    )
    return logits[0], tokens


@pytest.mark.parametrize("mask", AttentionMask)
@torch.no_grad()
def test_batch_equals_items_one_by_one(
    mask: AttentionMask, tokenizer: PreTrainedTokenizerFast
) -> None:
    config = tiny_model(len(tokenizer), TemporalConfig(mask=mask))
    model, batcher = new_model(config, seed=1), Batcher(config, tokenizer)
    items = make_items(Split.TRAIN, 1)
    batch = batcher(items)
    together = predict(model, batch, batcher.visual_token)
    for row, item in enumerate(items):
        alone, tokens = logits_of_one(model, tokenizer, item)
        assert batch.targets[row].tolist() == tokens[-2:]
        assert tokenizer.decode(tokens[-2:]) == f" {item.answer}{EOS}"
        # Both are float32; the order of sums differs, and logits are of order 1.
        assert_close(together[row], alone[-3:-1], rtol=1e-4, atol=1e-5)


def test_pixels_are_those_of_the_image_processor(batcher: Batcher, config: ModelConfig) -> None:
    size = config.vision.image_size
    (frame, *_) = render([make_item(Kind.COUNT, 3, Split.TEST, 3).clip], size)[0]
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=size)
    expected = processor(Image.fromarray(frame), return_tensors="pt")["pixel_values"]
    assert_close(normalise(frame[None]), expected, rtol=1e-5, atol=1e-5)


def test_accuracy_counts_whole_answers(
    model: TcLlava, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [make_item(Kind.COLOUR, 1, Split.TEST, seed) for seed in range(6)]
    batch = batcher(items)
    with torch.no_grad():
        word, end = predict(model, batch, batcher.visual_token)[0].argmax(-1).tolist()
    red, eos = batch.targets[0].tolist()
    assert (word, end) != (red, eos)
    assert accuracy(model, batcher, items) == {Kind.COLOUR: 0.0}

    def always(second: int) -> None:
        """Make the decoder say "red", and then this, whatever it sees."""
        logits = torch.zeros(len(items), 2, model.config.text.vocab_size)
        logits[:, 0, red] = logits[:, 1, second] = 1
        monkeypatch.setattr(model.decoder, "forward", lambda *_: (logits, []))

    always(eos)
    assert accuracy(model, batcher, items) == {Kind.COLOUR: 1 / 6}
    always(red)
    assert accuracy(model, batcher, items) == {Kind.COLOUR: 0.0}
