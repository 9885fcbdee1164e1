# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints of every family, made and saved by transformers' own classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    MistralConfig,
    PreTrainedModel,
)

# name -> (model class, config class, text config class)
FAMILIES = {
    "llava": (LlavaForConditionalGeneration, LlavaConfig, LlamaConfig),
    "llava_next_vicuna": (LlavaNextForConditionalGeneration, LlavaNextConfig, LlamaConfig),
    "llava_next_mistral": (LlavaNextForConditionalGeneration, LlavaNextConfig, MistralConfig),
    "llava_next_video": (LlavaNextVideoForConditionalGeneration, LlavaNextVideoConfig, LlamaConfig),
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 96,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
IMAGE_TOKEN, VIDEO_TOKEN = 94, 95


def small_model(
    family: str = "llava",
    *,
    dtype: torch.dtype = torch.float32,
    text: dict[str, Any] | None = None,
    **config: Any,
) -> PreTrainedModel:
    """A small model whose every weight is random, biases and norms too: none equals another."""
    model_class, config_class, text_class = FAMILIES[family]
    text_values: dict[str, Any] = {**TEXT, **(text or {})}
    if text_class is MistralConfig:
        text_values["sliding_window"] = None
    if family == "llava_next_video":
        config["video_token_index"] = VIDEO_TOKEN
    model = model_class(
        config_class(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=text_class(**text_values),
            image_token_index=IMAGE_TOKEN,
            **config,
        )
    )
    generator = torch.Generator().manual_seed(2409)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.to(dtype).eval()


def save_small(folder: Path, family: str = "llava", **options: Any) -> Path:
    """Save a small checkpoint with save_pretrained, in one file."""
    small_model(family, **options).save_pretrained(folder)
    return folder


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a checkpoint's config.json in place."""
    file = folder / "config.json"
    document = json.loads(file.read_text())
    edit(document)
    file.write_text(json.dumps(document))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the weights of a checkpoint of one file."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    edit(tensors)
    save_file(tensors, file)


def rename_weights(folder: Path, prefixes: dict[str, str]) -> None:
    """Give every tensor another prefix: the first one in `prefixes` that fits."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            old = next(prefix for prefix in prefixes if name.startswith(prefix))
            tensors[prefixes[old] + name.removeprefix(old)] = tensors.pop(name)

    edit_weights(folder, edit)
