# SPDX-License-Identifier: Apache-2.0
"""What enters the matrices of each layer, when the model is asked questions about generated clips.

The clips are those of the demonstration suite's training split (`tc_export.tasks`), shown to the
model as it would see them: by its own preprocessing, template and tokenizer. It also reads passages
of text, every second topic of the manual that comes with Python: questions about drawn clips are
few words, and always the same. Hidden states go through one layer at a time, in float32, and one
layer's weights are in memory.

Axes: T tokens of all questions, K channels, E channels of the hidden states.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tc_export.checkpoint.reader import Checkpoint
from tc_export.checkpoint.tokenizer import write_tokenizer
from tc_export.dtypes import DType
from tc_export.model.positions import Clip, Text, lay_out
from tc_export.parity.layerwise import LayerwiseModel
from tc_export.parity.sequences import TokenSequence
from tc_export.runtime.preprocess import preprocess, read_preprocess_config
from tc_export.runtime.prompt import PromptBuilder
from tc_export.tasks import Kind, Split, make_item, render
from tc_export.tasks.passages import passages_of

MOST_FRAMES = 4
"""Of a clip, evenly taken from it."""

MOST_VISUAL_TOKENS = 6144
"""Of all clips together: of a tower with many tokens a frame fewer frames are shown, and fewer
clips where one frame of each is too much. What enters a layer is held, and multiplied by itself."""

NO_LOGITS = np.empty(0, dtype=np.int64)


class Calibration:
    """Questions on their way through the layers; ask for the layers in order."""

    def __init__(
        self, checkpoint: Checkpoint, clips: int, passages: int = 0, seed: int = 0
    ) -> None:
        """Show the model so many clips, and let it read so many passages.

        Raises:
            CheckpointError: the tokenizer, the template or the preprocessing cannot be used.
            UsageError: a question does not fit the model's context.
        """
        self._model = LayerwiseModel(checkpoint, DType.FLOAT32)
        prompts = _prompt_builder(checkpoint.folder)
        self._sequences = _questions(self._model, checkpoint, prompts, clips, seed)
        for token_ids in passages_of(prompts.tokenizer, passages):
            layout, _ = lay_out([Text(len(token_ids))], checkpoint.config.model.temporal)
            embeds = self._model.embed(token_ids)
            self._sequences.append(
                TokenSequence(embeds=embeds, layout=layout, logits_indices=NO_LOGITS)
            )
        self._next = 0

    @property
    def tokens(self) -> int:
        """Of all questions."""
        return sum(len(x.embeds) for x in self._sequences)

    def inputs(self, layer: int) -> dict[str, Tensor]:
        """What enters each linear layer of a decoder layer, [T, K], by its name in there.

        Layers that share their inputs have one tensor in common. The hidden states then stand
        before the next layer.
        """
        assert layer == self._next, "layers are asked for in order"
        taken: dict[str, list[Tensor]] = {}

        def keep(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
            taken.setdefault(name, []).append(given[0])

        def watch(_: str, module: nn.Module) -> None:
            for name, part in module.named_modules():
                if isinstance(part, nn.Linear):
                    part.register_forward_pre_hook(partial(keep, name))

        outputs = self._model.layer(layer, self._sequences, watch)
        self._sequences = [
            TokenSequence(embeds=output.hidden, layout=x.layout, logits_indices=NO_LOGITS)
            for x, output in zip(self._sequences, outputs, strict=True)
        ]
        self._next += 1
        return _joined(taken)


def _joined(taken: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """The parts of each name [1, S, K] as one tensor, which names with the same parts share."""
    joined: dict[int, Tensor] = {}
    for parts in taken.values():
        if id(parts[0]) not in joined:
            joined[id(parts[0])] = torch.cat([part.flatten(0, -2) for part in parts])
    return {name: joined[id(parts[0])] for name, parts in taken.items()}


def _questions(
    model: LayerwiseModel, checkpoint: Checkpoint, prompts: PromptBuilder, clips: int, seed: int
) -> list[TokenSequence]:
    config = checkpoint.config.model
    pixels = read_preprocess_config(checkpoint.folder, config.vision.image_size)
    kinds = list(Kind)
    shown, token_ids, segments = [], [], []
    in_all = max(1, MOST_VISUAL_TOKENS // config.tokens_per_frame)
    clips = min(clips, in_all)
    most_frames = min(MOST_FRAMES, in_all // max(1, clips))
    for number in range(clips):
        item = make_item(kinds[number % len(kinds)], 1 + number % 3, Split.TRAIN, seed + number)
        frames = render([item.clip], config.vision.image_size)[0]
        places = np.linspace(0, len(frames) - 1, min(most_frames, len(frames))).round().astype(int)
        prompt = prompts.build(item.question, [Clip(len(places), config.tokens_per_frame)])
        prompt.check_fits(config.text.max_position_embeddings, 0)
        shown.append(preprocess([frames[place] for place in places], pixels))
        token_ids.append(prompt.token_ids(-1))
        segments.append(prompt.segments)
    sequences = []
    for features, ids, of in zip(model.features(shown), token_ids, segments, strict=True):
        embeds = model.embed(np.maximum(ids, 0))
        embeds[ids < 0] = features.reshape(-1, features.shape[-1])
        layout, _ = lay_out(of, config.temporal)
        sequences.append(TokenSequence(embeds=embeds, layout=layout, logits_indices=NO_LOGITS))
    return sequences


def _prompt_builder(folder: Path) -> PromptBuilder:
    """As a bundle of the checkpoint has it: tokenizers come in more forms than that reads."""
    with tempfile.TemporaryDirectory() as written:
        for path in folder.iterdir():
            if path.suffix in (".json", ".jinja") and "index" not in path.name:
                (Path(written) / path.name).write_bytes(path.read_bytes())
        write_tokenizer(folder, Path(written))
        return PromptBuilder.load(Path(written))
