# SPDX-License-Identifier: Apache-2.0
"""TC-LLaVA: the vision model, the token embedding and the decoder, side by side."""

from __future__ import annotations

from torch import Tensor, nn

from tc_export.config import ModelConfig
from tc_export.errors import UsageError
from tc_export.model.decoder import Cache, Decoder, new_layer_cache
from tc_export.model.vision import VisionModel


class TcLlava(nn.Module):
    """The reference model. Its parts are exported one by one, and run here together."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionModel(config)
        self.embed_tokens = nn.Embedding(config.text.vocab_size, config.text.hidden_size)
        self.decoder = Decoder(config)
        if config.text.tie_word_embeddings:
            self.decoder.lm_head.weight = self.embed_tokens.weight

    def new_cache(self, batch: int, rows: int) -> Cache:
        """An empty cache: `rows` is the most positions, and one more where a batch is padded."""
        like = self.embed_tokens.weight
        with like.device:
            return [
                new_layer_cache(self.config, batch, rows, like.dtype) for _ in self.decoder.layers
            ]

    def embed(self, token_ids: Tensor, pixel_values: Tensor, visual_token: int) -> Tensor:
        """Embed a prompt [B, S] whose visual places hold `visual_token`.

        `pixel_values` [N, 3, image_size, image_size] are all frames of the batch, in order.

        Raises:
            UsageError: the visual places are not as many as the frames' tokens.
        """
        at_visual = token_ids == visual_token
        places, frames = int(at_visual.sum()), pixel_values.shape[0]
        if places != frames * self.config.tokens_per_frame:
            raise UsageError(
                f"the prompt has {places} places for visual tokens, and {frames} frames of "
                f"{self.config.tokens_per_frame} tokens were given"
            )
        # A visual token's id may lie outside the vocabulary: its embedding is never used.
        embeds: Tensor = self.embed_tokens(token_ids.masked_fill(at_visual, 0))
        if frames == 0:
            return embeds
        visual = self.vision(pixel_values).to(embeds.dtype)
        return embeds.masked_scatter(at_visual.unsqueeze(-1), visual)
