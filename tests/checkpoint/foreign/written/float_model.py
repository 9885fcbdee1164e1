# SPDX-License-Identifier: Apache-2.0
"""The model that libraries are given: the smallest LLaVA whose matrices are no squares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE_TOKEN = 47

Tensors = dict[str, torch.Tensor]


def save_float(folder: Path) -> Path:
    """Save it in bfloat16. Rows of a matrix differ in size, so that one scale is not another."""
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=IMAGE_TOKEN + 1,
            hidden_size=32,
            intermediate_size=96,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=64,
        ),
        image_token_index=IMAGE_TOKEN,
    )
    model = LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(14)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.1
            rows = torch.randn(len(parameter), generator=generator).exp()
            parameter.copy_(values * rows.view(-1, *[1] * (values.dim() - 1)))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def token_ids() -> torch.Tensor:
    """Four prompts [4, 16] of text, for what a library measures."""
    return torch.randint(0, IMAGE_TOKEN, (4, 16), generator=torch.Generator().manual_seed(15))


def save_packed(
    source: Path,
    folder: Path,
    quantization: dict[str, Any],
    pack: Callable[[nn.Linear], nn.Module | None],
) -> None:
    """Save it in float16, each matrix of a decoder layer in the module that a library made of it.

    For libraries whose own saving needs an older transformers. None leaves a matrix as it is.
    """
    model = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float16)
    for name, linear in list(model.named_modules()):
        if "language_model" in name and name.endswith("_proj"):
            packed = pack(linear)
            if packed is not None:
                model.set_submodule(name, packed)
    model.save_pretrained(folder)
    file = folder / "config.json"
    document = json.loads(file.read_text()) | {"quantization_config": quantization}
    file.write_text(json.dumps(document, indent=2) + "\n")


def layers_of(folder: Path, part: str) -> dict[str, Tensors]:
    """The tensors of each layer that has this part, by the names of the layers."""
    stored = load_file(folder / "model.safetensors")
    names = [name.removesuffix(f".{part}") for name in stored if name.endswith(f"_proj.{part}")]
    layers = {name: {k: v for k, v in stored.items() if k.startswith(f"{name}.")} for name in names}
    return {
        name: {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items()}
        for name, tensors in layers.items()
    }


def save_dequantised(folder: Path, weights: Tensors) -> None:
    """Save what the library makes of its matrices, by the names that they had before."""
    np.savez_compressed(
        folder / "dequantised.npz", **{f"{name}.weight": x.numpy() for name, x in weights.items()}
    )
