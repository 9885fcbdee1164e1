# SPDX-License-Identifier: Apache-2.0
"""Small models with random weights, their oracles, and one call that runs a whole sequence.

The oracle of the decoder is transformers' LlamaForCausalLM, fed our fractional positions as
`position_ids` and the brute force's visibility as a mask; nothing of its code is patched. In
float32 it runs as it comes, with its plain attention. That, its norm and its table of angles round
to float32 whatever they are given, so in float64 it runs with its other attention, PyTorch's own
norm and `WideRotary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tc_export.config import ModelConfig, TemporalConfig, TextConfig, VisionConfig
from tc_export.model.decoder import Cache
from tc_export.model.positions import Layout
from tc_export.model.tc_llava import TcLlava
from tests.model.brute_force import Run, rotary_positions, tokens_of, visibility

VISION = VisionConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=8,
    patch_size=2,
)


def text_config(**changes: Any) -> TextConfig:
    """A decoder of two layers with four heads of ten channels, two of them for keys."""
    values: dict[str, Any] = {
        "vocab_size": 43,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "max_position_embeddings": 128,
    }
    return TextConfig.model_validate({**values, **changes})


def random_model(
    temporal: TemporalConfig,
    text: TextConfig | None = None,
    dtype: torch.dtype = torch.float64,
    **changes: Any,
) -> TcLlava:
    """A model with weights large enough that every part of it shows in the logits."""
    config = ModelConfig(vision=VISION, text=text or text_config(), temporal=temporal, **changes)
    model = TcLlava(config).to(dtype).eval().requires_grad_(False)
    randomise(model)
    return model


def randomise(model: nn.Module, seed: int = 7) -> None:
    """Fill the parameters, norms near one; the same numbers whatever the type."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.35
        with torch.no_grad():
            parameter.copy_(1 + noise if "norm" in name and "weight" in name else noise)


def random_embeds(model: TcLlava, tokens: int, seed: int = 1) -> Tensor:
    """Embeddings [1, tokens, E]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, tokens, model.config.text.hidden_size)
    embeds = torch.randn(shape, generator=generator, dtype=torch.float64)
    return embeds.to(model.embed_tokens.weight.dtype)


def run(
    model: TcLlava,
    embeds: Tensor,
    layout: Layout,
    cache: Cache | None = None,
    frames_so_far: Tensor | None = None,
) -> tuple[Tensor, Cache]:
    """Logits [B, S, V] of every token of the layout [B, S], and the cache after it.

    `frames_so_far` [B, C] are the frames of the rows that the cache already holds.
    """
    if cache is None:
        cache = model.new_cache(embeds.shape[0], layout.length + 1)
    position_ids = torch.from_numpy(layout.position_ids)
    frame_ids = torch.full((embeds.shape[0], cache[0][0].shape[2]), -1)
    if frames_so_far is not None:
        frame_ids.copy_(frames_so_far)
    rows = position_ids.remainder(frame_ids.shape[1])  # padding's -1 is the last row
    frame_ids.scatter_(1, rows, torch.from_numpy(layout.frame_ids))
    logits, present = model.decoder(
        embeds,
        position_ids,
        torch.from_numpy(layout.temporal_ids),
        torch.from_numpy(layout.kv_end),
        torch.arange(layout.length).expand(embeds.shape[0], -1),
        cache,
        frame_ids,
    )
    return logits, present


class WideRotary(nn.Module):
    """Cosines and sines in float64, in place of transformers' LlamaRotaryEmbedding."""

    def __init__(self, inv_freq: Tensor, attention_factor: float) -> None:
        super().__init__()
        self.inv_freq, self.attention_factor = inv_freq.double(), attention_factor

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = position_ids.double()[..., None] * self.inv_freq
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos() * self.attention_factor, angle.sin() * self.attention_factor


def oracle_of(model: TcLlava) -> LlamaForCausalLM:
    """Transformers' LLaMA with the weights of `model`, in its type."""
    text = model.config.text
    dtype = model.embed_tokens.weight.dtype
    rope = text.rope.model_dump(exclude_none=True)
    rope["rope_theta"] = rope.pop("theta")
    wanted = {
        "default": set(),
        "linear": {"factor"},
        "llama3": {
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        },
        "yarn": {"factor", "original_max_position_embeddings"},
    }[text.rope.rope_type] | {"rope_type", "rope_theta"}
    config = LlamaConfig(
        **text.model_dump(exclude={"rope"}),
        rope_parameters={key: rope[key] for key in wanted},
        attn_implementation="sdpa" if dtype == torch.float64 else "eager",
    )
    oracle = LlamaForCausalLM(config).eval().requires_grad_(False)
    inv_freq, factor = oracle.model.rotary_emb.inv_freq, oracle.model.rotary_emb.attention_scaling
    oracle = oracle.to(dtype)
    oracle.load_state_dict(
        {
            name.replace("decoder.layers", "model.layers")
            .replace("decoder.norm", "model.norm")
            .replace("decoder.lm_head", "lm_head")
            .replace("embed_tokens", "model.embed_tokens"): tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith("vision.")
        }
    )
    if dtype == torch.float64:
        oracle.model.rotary_emb = WideRotary(inv_freq, factor)
        for path, norm in list(oracle.named_modules()):
            if type(norm).__name__ == "LlamaRMSNorm":
                wide = nn.RMSNorm(text.hidden_size, eps=text.rms_norm_eps, dtype=dtype)
                wide.weight = norm.weight
                oracle.set_submodule(path, wide)
    return oracle


def oracle_logits(
    oracle: LlamaForCausalLM, embeds: Tensor, runs: Sequence[Run], temporal: TemporalConfig
) -> Tensor:
    """Logits [1, S, V] from the brute force's positions and visibility."""
    tokens = tokens_of(runs, temporal.after_clip)
    visible = torch.tensor(visibility(tokens, temporal.mask))
    mask = visible
    if oracle.config._attn_implementation == "eager":  # it adds its mask
        mask = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))
    positions = torch.tensor([rotary_positions(tokens, temporal.gamma)], dtype=torch.float64)
    logits: Tensor = oracle(
        inputs_embeds=embeds,
        position_ids=positions.to(embeds.dtype),
        attention_mask=mask[None, None],
        use_cache=False,
    ).logits
    return logits
