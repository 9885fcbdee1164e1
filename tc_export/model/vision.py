# SPDX-License-Identifier: Apache-2.0
"""Frames to visual tokens: CLIP-type vision tower, projector and spatial pooling.

Axes: N frames, P patches (and the class token), E channels, H heads, D head size.
Module names are those of Hugging Face's CLIP, with its `pre_layrnorm` spelt right.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tc_export.config import ModelConfig, PoolingConfig, VisionConfig
from tc_export.errors import UsageError


def activation(name: str, x: Tensor) -> Tensor:
    """Apply the activation that Hugging Face calls `name`."""
    match name:
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "gelu":
            return F.gelu(x)
        case "gelu_pytorch_tanh":
            return F.gelu(x, approximate="tanh")
    raise UsageError(
        f"the activation {name!r} is not supported",
        hint="supported: quick_gelu, gelu, gelu_pytorch_tanh",
    )


class ClipAttention(nn.Module):
    """Full self-attention within a frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_NPE: Tensor) -> Tensor:
        """Return the attended x, of the same shape [N, P, E]."""

        def heads(linear: nn.Linear) -> Tensor:
            return torch.unflatten(linear(x_NPE), -1, (self.heads, -1)).transpose(1, 2)

        y_NHPD = F.scaled_dot_product_attention(
            heads(self.q_proj), heads(self.k_proj), heads(self.v_proj)
        )
        out: Tensor = self.out_proj(y_NHPD.transpose(1, 2).flatten(2))
        return out


class ClipMlp(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.act = config.hidden_act
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, P, E] to the same shape."""
        out: Tensor = self.fc2(activation(self.act, self.fc1(x)))
        return out


class ClipLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = ClipAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ClipMlp(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, P, E] to the same shape."""
        x = x + self.self_attn(self.layer_norm1(x))
        x = x + self.mlp(self.layer_norm2(x))
        return x


class ClipEmbeddings(nn.Module):
    """Patches by a strided convolution, with a class token in front and learned positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.class_embedding = nn.Parameter(torch.empty(size))
        self.patch_embedding = nn.Conv2d(
            3, size, kernel_size=config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(config.grid**2 + 1, size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [N, 3, image_size, image_size] to [N, P, E]."""
        patches_NPE = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        class_N1E = self.class_embedding.expand(pixel_values.shape[0], 1, -1)
        return torch.cat((class_N1E, patches_NPE), dim=1) + self.position_embedding.weight


class VisionTower(nn.Module):
    """CLIP up to the feature layer; later layers are neither built nor loaded."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.keep_class_token = config.keep_class_token
        self.embeddings = ClipEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(ClipLayer(config) for _ in range(config.layers_used))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [N, 3, image_size, image_size] to patch features [N, P, E]."""
        x = self.pre_layernorm(self.embeddings(pixel_values))
        for layer in self.layers:
            x = layer(x)
        return self.select(x)

    def select(self, x_NPE: Tensor) -> Tensor:
        """The patches that go on, with the class token or without it."""
        return x_NPE if self.keep_class_token else x_NPE[:, 1:]


class Projector(nn.Module):
    """Two linear layers from the tower's channels to the language model's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.act = config.projector_act
        width, hidden = config.vision.hidden_size, config.text.hidden_size
        self.linear_1 = nn.Linear(width, hidden, bias=config.projector_bias)
        self.linear_2 = nn.Linear(hidden, hidden, bias=config.projector_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, P, vision channels] to [N, P, language channels]."""
        out: Tensor = self.linear_2(activation(self.act, self.linear_1(x)))
        return out


def pool(x_NPE: Tensor, grid: int, pooling: PoolingConfig) -> Tensor:
    """Pool the grid x grid patches of each frame by `stride`; a ragged edge is dropped."""
    if pooling.stride == 1:
        return x_NPE
    x_NEhw = torch.unflatten(x_NPE.transpose(1, 2), 2, (grid, grid))
    reduce = F.avg_pool2d if pooling.mode == "average" else F.max_pool2d
    return reduce(x_NEhw, pooling.stride).flatten(2).transpose(1, 2)


class VisionModel(nn.Module):
    """Frames to visual tokens: the whole of the exported `vision` graph."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid = config.vision.grid
        self.pooling = config.pooling
        self.vision_tower = VisionTower(config.vision)
        self.multi_modal_projector = Projector(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [N, 3, image_size, image_size] to tokens [N, tokens_per_frame, E]."""
        return self.project_and_pool(self.vision_tower(pixel_values), self.multi_modal_projector)

    def project_and_pool(self, x_NPE: Tensor, projector: nn.Module) -> Tensor:
        """Map the tower's features to tokens [N, tokens_per_frame, E of the language model]."""
        if self.pooling.before_projector:
            out: Tensor = projector(pool(x_NPE, self.grid, self.pooling))
            return out
        return pool(projector(x_NPE), self.grid, self.pooling)
