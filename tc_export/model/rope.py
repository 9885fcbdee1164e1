# SPDX-License-Identifier: Apache-2.0
"""Inverse frequencies of the rotary embedding, with each rope scaling.

Formulas: linear (position interpolation, arXiv 2306.15595), llama3 (Llama 3.1 model card),
yarn (arXiv 2309.00071). Computed once in float32, as Hugging Face transformers does, and handed to
`TcDualRope` as an input, so that PyTorch and every engine rotate by the same numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tc_export.config import RopeConfig, TextConfig


def inverse_frequencies(text: TextConfig) -> tuple[Tensor, float]:
    """Return inv_freq [head_dim / 2] in float32 (radians a position), and the attention factor."""
    rope, size = text.rope, text.head_dim
    exponent = torch.arange(0, size, 2, dtype=torch.int64).to(torch.float32) / size
    inv_freq = 1.0 / (rope.theta**exponent)
    match rope.rope_type:
        case "linear":
            return inv_freq / rope.factor, 1.0
        case "llama3":
            return _llama3(inv_freq, rope, _trained_length(text)), 1.0
        case "yarn":
            return _yarn(rope, size, _trained_length(text)), _yarn_attention_factor(rope)
        case _:
            return inv_freq, 1.0


def _trained_length(text: TextConfig) -> int:
    return text.rope.original_max_position_embeddings or text.max_position_embeddings


def _llama3(inv_freq: Tensor, rope: RopeConfig, trained_length: int) -> Tensor:
    """Keep short wavelengths, divide long ones by `factor`, and blend those between."""
    wavelength = 2 * math.pi / inv_freq
    longest_kept = trained_length / rope.high_freq_factor
    shortest_scaled = trained_length / rope.low_freq_factor
    scaled = torch.where(wavelength > shortest_scaled, inv_freq / rope.factor, inv_freq)
    blend = (trained_length / wavelength - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * scaled / rope.factor + blend * scaled
    between = ~(wavelength < longest_kept) & ~(wavelength > shortest_scaled)
    return torch.where(between, blended, scaled)


def _yarn(rope: RopeConfig, size: int, trained_length: int) -> Tensor:
    """Blend interpolated and original frequencies by how often each turns in the trained length."""

    def channel_turning(turns: float) -> float:
        return (size * math.log(trained_length / (turns * 2 * math.pi))) / (
            2 * math.log(rope.theta)
        )

    low, high = channel_turning(rope.beta_fast), channel_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high
    ramp = (torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)
    kept = 1 - torch.clamp(ramp, 0, 1)
    base = rope.theta ** (torch.arange(0, size, 2).to(torch.float32) / size)
    return (1.0 / (rope.factor * base)) * (1 - kept) + (1.0 / base) * kept


def _yarn_attention_factor(rope: RopeConfig) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)
