# SPDX-License-Identifier: Apache-2.0
"""Inverse frequencies against transformers' own functions, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tc_export.config import RopeConfig
from tc_export.model.rope import inverse_frequencies
from tests.model.small_models import text_config

LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "default, other base": {"theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "linear, fractional": {"rope_type": "linear", "factor": 2.5, "theta": 1e6},
    "llama 3.1": {**LLAMA_3_1, "theta": 500000.0},
    "llama 3.2": {**LLAMA_3_1, "theta": 500000.0, "factor": 32.0},
    "llama3, short": {**LLAMA_3_1, "original_max_position_embeddings": 64, "high_freq_factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    "yarn, factor 1": {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 512},
    "yarn, attention factor": {
        "rope_type": "yarn",
        "factor": 16.0,
        "attention_factor": 0.7,
        "original_max_position_embeddings": 2048,
    },
    "yarn, betas": {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "theta": 150000.0,
        "original_max_position_embeddings": 4096,
    },
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
        "original_max_position_embeddings": 4096,
    },
    "yarn, not truncated": {
        "rope_type": "yarn",
        "factor": 32.0,
        "truncate": False,
        "theta": 150000.0,
        "original_max_position_embeddings": 4096,
    },
    "yarn, ramp that begins before the first channel": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 6,
    },
    "yarn, ramp that ends past the last channel": {
        "rope_type": "yarn",
        "factor": 2.0,
        "theta": 10.0,
        "beta_fast": 300.0,
        "original_max_position_embeddings": 4096,
    },
    "yarn, one channel of ramp": {
        "rope_type": "yarn",
        "factor": 2.0,
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}


def transformers_frequencies(rope: dict[str, Any], head_dim: int) -> tuple[torch.Tensor, float]:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, **rope}
    parameters["rope_theta"] = parameters.pop("theta", parameters["rope_theta"])
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters=parameters,
    )
    if parameters["rope_type"] == "default":
        return LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)


@pytest.mark.parametrize("head_dim", [2, 10, 64, 128])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_equals_transformers(rope: dict[str, Any], head_dim: int) -> None:
    text = text_config(
        head_dim=head_dim, max_position_embeddings=131072, rope=RopeConfig.model_validate(rope)
    )
    expected, expected_factor = transformers_frequencies(rope, head_dim)

    found, factor = inverse_frequencies(text)

    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert factor == expected_factor


def test_the_trained_length_is_the_models_own_where_nothing_else_is_said() -> None:
    rope = {"rope_type": "yarn", "factor": 4.0}
    said = RopeConfig.model_validate({**rope, "original_max_position_embeddings": 300})
    found, _ = inverse_frequencies(
        text_config(max_position_embeddings=300, rope=RopeConfig.model_validate(rope))
    )
    assert torch.equal(found, inverse_frequencies(text_config(rope=said))[0])


def test_scalings_differ() -> None:
    """Guards against a table of parameters in which the scaling does not matter."""
    texts = [text_config(head_dim=64, rope=RopeConfig.model_validate(r)) for r in ROPES.values()]
    frequencies = {tuple(inverse_frequencies(text)[0].tolist()) for text in texts}
    assert len(frequencies) >= len(ROPES) - 3  # some differ in the attention factor alone
