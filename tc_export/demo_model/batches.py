# SPDX-License-Identifier: Apache-2.0
"""Items to tensors: pixels, prompts with their answers, positions and targets.

Axes: B items, F frames of a clip, N distinct frames of the batch, S tokens, L tokens to predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from tc_export.config import ModelConfig
from tc_export.demo_model.tokenizer import EOS, PAD, PROMPT, VIDEO, token_id
from tc_export.model.positions import TEXT, Clip, Text, lay_out, pad
from tc_export.model.tc_llava import TcLlava
from tc_export.tasks import Item, render_distinct

# CLIP's own, in RGB.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward needs, and what it should answer."""

    pixel_values: Tensor  # [N, 3, height, width]
    frame_index: Tensor  # [B, F] int64 into N
    token_ids: Tensor  # [B, S] int64, with the answer and the end token, padded on the right
    position_ids: Tensor  # [B, S] int64
    temporal_ids: Tensor  # [B, S] int64
    kv_end: Tensor  # [B, S] int32
    key_frame_ids: Tensor  # [B, S + 1] int64: the frame of each cache row, -1 for text and padding
    logits_indices: Tensor  # [B, L] int64: the tokens before those that are to be predicted
    targets: Tensor  # [B, L] int64: the answer and the end token


def normalise(frames_NYXC: NDArray[np.uint8]) -> Tensor:
    """RGB bytes to what CLIP's processor gives for a picture of this size, [N, 3, Y, X]."""
    mean, std = np.array(PIXEL_MEAN, np.float32), np.array(PIXEL_STD, np.float32)
    scaled = (frames_NYXC.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


class Batcher:
    """Makes batches for one model and its tokenizer."""

    def __init__(self, config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._pad, self._eos, self._video = (
            token_id(tokenizer, token) for token in (PAD, EOS, VIDEO)
        )

    @property
    def visual_token(self) -> int:
        """The token that stands where a visual token comes."""
        return self._video

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Draw the clips and encode the texts."""
        frames, frame_index = render_distinct(
            [item.clip for item in items], self._config.vision.image_size
        )
        prompts = self._tokenizer([PROMPT.format(question=item.question) for item in items])
        answers = self._tokenizer([f" {item.answer}" for item in items], add_special_tokens=False)
        targets = [[*answer, self._eos] for answer in answers["input_ids"]]
        clip = Clip(frame_index.shape[1], self._config.tokens_per_frame)
        rows, layouts = [], []
        for prompt, target in zip(prompts["input_ids"], targets, strict=True):
            at = prompt.index(self._video)
            # The last token is predicted and never read.
            rows.append(
                [*prompt[:at], *[self._video] * clip.length, *prompt[at + 1 :], *target[:-1]]
            )
            segments = (Text(at), clip, Text(len(rows[-1]) - at - clip.length))
            layouts.append(lay_out(segments, self._config.temporal)[0])
        layout = pad(layouts, "right")
        longest = layout.length
        before_answer = [len(row) - len(target) for row, target in zip(rows, targets, strict=True)]
        wanted = np.array(before_answer)[:, None] + np.arange(len(targets[0]))
        return Batch(
            pixel_values=normalise(frames),
            frame_index=torch.from_numpy(frame_index),
            token_ids=torch.tensor([row + [self._pad] * (longest - len(row)) for row in rows]),
            position_ids=torch.from_numpy(layout.position_ids),
            temporal_ids=torch.from_numpy(layout.temporal_ids),
            kv_end=torch.from_numpy(layout.kv_end),
            # A token's cache row is its position; the spare row at the end takes the padding.
            key_frame_ids=F.pad(torch.from_numpy(layout.frame_ids), (0, 1), value=TEXT),
            logits_indices=torch.from_numpy(wanted),
            targets=torch.tensor(targets),
        )


def predict(model: TcLlava, batch: Batch, visual_token: int) -> Tensor:
    """Logits [B, L, V] for the targets, each given the true tokens before it.

    The tower runs over each distinct frame once; the result is that of running over all.
    """
    visual_BFME = model.vision(batch.pixel_values)[batch.frame_index]
    embeds = model.embed_tokens(batch.token_ids)
    at_visual = (batch.token_ids == visual_token).unsqueeze(-1).expand_as(embeds)
    embeds = embeds.masked_scatter(at_visual, visual_BFME.to(embeds.dtype))
    count, length = batch.token_ids.shape
    logits, _ = model.decoder(
        embeds,
        batch.position_ids,
        batch.temporal_ids,
        batch.kv_end,
        batch.logits_indices,
        model.new_cache(count, length + 1),  # the spare row takes the padding
        batch.key_frame_ids,
    )
    out: Tensor = logits
    return out
