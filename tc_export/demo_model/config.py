# SPDX-License-Identifier: Apache-2.0
"""The sizes of the demonstration model, and the settings of its training."""

from __future__ import annotations

from pydantic import Field

from tc_export.config import (
    Config,
    ModelConfig,
    PoolingConfig,
    RopeConfig,
    TemporalConfig,
    TextConfig,
    VisionConfig,
)


class TrainingConfig(Config):
    """How long, how fast and on what to train."""

    steps: int = Field(default=7000, gt=0)
    hardest_grade: int = Field(default=3, ge=1, le=3)  # of the items
    late_from: int = Field(default=7000, ge=0)  # step from which slow kinds come more often
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=32, gt=0)
    matrix_rate: float = Field(default=2e-3, gt=0)  # learning rate of Muon, for linear layers
    other_rate: float = Field(default=1e-3, gt=0)  # and of AdamW, for everything else
    final_share: float = Field(default=0.01, ge=0, le=1)  # of the rates, at the end
    warm_up_steps: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip_gradient_norm: float = Field(default=1.0, gt=0)
    validate_every: int = Field(default=200, gt=0)
    validation_items_each: int = Field(default=8, gt=0)  # of every kind and grade
    save_every: int = Field(default=100, gt=0)
    threads: int = Field(default=1, gt=0)


def tiny_model(
    vocabulary: int, temporal: TemporalConfig | None = None, *, layers: int = 4
) -> ModelConfig:
    """A LLaVA of about 1 million parameters: 4 tokens for each frame of 32 x 32 pixels.

    `layers` is how many the decoder has.
    """
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            feature_layer=-1,
        ),
        pooling=PoolingConfig(stride=2),
        text=TextConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            # The usual base of 10,000 spends half of the channels on texts of thousands of tokens.
            rope=RopeConfig(theta=1000.0),
        ),
        temporal=temporal or TemporalConfig(),
    )
