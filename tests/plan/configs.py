# SPDX-License-Identifier: Apache-2.0
"""Model configurations to plan for, and LLaVA-1.5-7B's."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from tc_export.checkpoint.hf_config import read_config
from tc_export.config import AttentionMask, ModelConfig

VICUNA = {
    "model_type": "llava",
    "image_token_index": 32000,
    "text_config": {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096},
}


def save_vicuna_config(folder: Path) -> Path:
    """A checkpoint folder with nothing but LLaVA-1.5-7B's config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(VICUNA))
    return folder


def vicuna(folder: Path) -> ModelConfig:
    return read_config(save_vicuna_config(folder)).model


@cache
def llava_7b() -> ModelConfig:
    """LLaVA-1.5-7B."""
    with tempfile.TemporaryDirectory() as folder:
        return vicuna(Path(folder))


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    """Small models of every shape that the configuration allows."""

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    vision_heads, kv_heads, grid = number(1, 4), number(1, 3), number(1, 6)
    layers = number(0, 4) or 1
    patch = number(1, 4)
    return ModelConfig.model_validate(
        {
            "vision": {
                "hidden_size": vision_heads * number(1, 8),
                "intermediate_size": number(1, 40),
                "num_hidden_layers": layers,
                "num_attention_heads": vision_heads,
                "image_size": grid * patch,
                "patch_size": patch,
                "feature_layer": -number(1, layers + 1),
            },
            "projector_bias": draw(st.booleans()),
            "pooling": {"stride": number(1, grid)},
            "text": {
                "vocab_size": number(2, 90),
                "hidden_size": number(1, 40),
                "intermediate_size": number(1, 60),
                "num_hidden_layers": number(1, 4),
                "num_attention_heads": kv_heads * number(1, 5),
                "num_key_value_heads": kv_heads,
                "head_dim": 2 * number(1, 16),
                "max_position_embeddings": number(300, 5000),
                "attention_bias": draw(st.booleans()),
                "mlp_bias": draw(st.booleans()),
                "tie_word_embeddings": draw(st.booleans()),
            },
            "temporal": {"mask": draw(st.sampled_from(AttentionMask))},
        }
    )
