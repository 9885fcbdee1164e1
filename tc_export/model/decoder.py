# SPDX-License-Identifier: Apache-2.0
"""The LLaMA-shaped decoder with temporal dual RoPE and frame-wise block-causal attention.

One forward serves prefill, chunked prefill and decode: the cache is always there, has a fixed
number of rows, and a token's row is its position (`tc_export.ops.block_causal_attention`).

Axes: B batch, S tokens of this call, C cache rows, H query heads, K key/value heads, D head size,
E channels, L rows of logits that are wanted, V vocabulary.
Module names are those of Hugging Face's LLaMA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tc_export import ops
from tc_export.config import AttentionMask, KvFormat, ModelConfig, TextConfig
from tc_export.model.rope import inverse_frequencies
from tc_export.ops.block_causal_attention import attend, write_cache
from tc_export.ops.quantized_rows import dequantize_rows

LayerCache = tuple[Tensor, ...]
"""A key and a value [B, K, C, D]; in eight bits also the scales [B, K, C] of both."""

Cache = list[LayerCache]
"""The cache of each layer."""


def new_layer_cache(config: ModelConfig, batch: int, rows: int, dtype: torch.dtype) -> LayerCache:
    """An empty cache of a layer of a decoder in `dtype`."""
    text, kv = config.text, config.cache.kv.dtype
    per_row = (batch, text.num_key_value_heads, rows)
    numbers = dtype if kv is None else kv.torch
    key, value = (torch.zeros(*per_row, text.head_dim, dtype=numbers) for _ in range(2))
    if kv is None:
        return key, value
    # Scales are float32, and float64 where everything is.
    scale_type = torch.promote_types(dtype, torch.float32)
    return key, value, *(torch.zeros(per_row, dtype=scale_type) for _ in range(2))


def plain_cache(cache: LayerCache) -> tuple[Tensor, Tensor]:
    """The key and the value [B, K, C, D] that a cache stands for, in floating point."""
    key, value, *scales = cache
    if not scales:
        return key, value
    key_scale, value_scale = scales
    return (
        dequantize_rows(key, key_scale, key_scale.dtype),
        dequantize_rows(value, value_scale, value_scale.dtype),
    )


class RmsNorm(nn.Module):
    """Root mean square normalisation, computed in float32 (float64 stays float64)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        wide = x if x.dtype == torch.float64 else x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        out: Tensor = self.weight * wide.to(x.dtype)
        return out


class Attention(nn.Module):
    """Grouped-query attention over the cache, through the custom ops."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text
        self.head_dim = text.head_dim
        self.gamma = config.temporal.gamma
        self.mask = config.temporal.mask
        self.kv = config.cache.kv
        hidden, bias = text.hidden_size, text.attention_bias
        self.q_proj = nn.Linear(hidden, text.num_attention_heads * text.head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, text.num_key_value_heads * text.head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, text.num_key_value_heads * text.head_dim, bias=bias)
        self.o_proj = nn.Linear(text.num_attention_heads * text.head_dim, hidden, bias=bias)

    def forward(
        self,
        x_BSE: Tensor,
        rotary: Rotary,
        kv_end: Tensor,
        past: LayerCache,
        key_frame_ids: Tensor | None,
    ) -> tuple[Tensor, LayerCache]:
        """Return the attended x [B, S, E] and the layer's cache after the call."""

        def heads(linear: nn.Linear) -> Tensor:
            return torch.unflatten(linear(x_BSE), -1, (-1, self.head_dim)).transpose(1, 2)

        q_BHSD = rotary(heads(self.q_proj))
        k_BKSD = rotary(heads(self.k_proj))
        v_BKSD = heads(self.v_proj)
        scale = self.head_dim**-0.5
        present: LayerCache
        if self.mask.is_prefix:
            attention = (
                ops.block_causal_attention
                if self.kv is KvFormat.OWN
                else ops.block_causal_attention_int8
            )
            y_BHSD, *present_parts = attention(
                q_BHSD, k_BKSD, v_BKSD, kv_end, rotary.position_ids, *past, scale
            )
            present = tuple(present_parts)
        else:
            assert key_frame_ids is not None
            key, value = (
                write_cache(cache, new, rotary.position_ids)
                for cache, new in zip(past, (k_BKSD, v_BKSD), strict=True)
            )
            visible_BSC = frame_block_mask(kv_end, rotary.position_ids, key_frame_ids)
            y_BHSD = attend(q_BHSD, key, value, visible_BSC, scale)
            present = key, value
        out = self.o_proj(y_BHSD.transpose(1, 2).flatten(2))
        return out, present


class Rotary:
    """The rotation of one call: positions and frequencies, the same in every layer."""

    def __init__(
        self,
        position_ids: Tensor,
        temporal_ids: Tensor,
        inv_freq: Tensor,
        gamma: float,
        attention_factor: float,
    ) -> None:
        self.position_ids = position_ids
        self._temporal_ids = temporal_ids
        self._inv_freq = inv_freq
        self._gamma = gamma
        self._attention_factor = attention_factor

    def __call__(self, x_BHSD: Tensor) -> Tensor:
        """Rotate queries or keys."""
        out: Tensor = ops.dual_rope(
            x_BHSD,
            self.position_ids,
            self._temporal_ids,
            self._inv_freq,
            self._gamma,
            self._attention_factor,
        )
        return out


def frame_block_mask(kv_end: Tensor, position_ids: Tensor, key_frame_ids: Tensor) -> Tensor:
    """The `frame_block` mask [B, S, C]: a visual token sees no visual token of another frame.

    `key_frame_ids` [B, C] holds the frame of each cache row, -1 for text; a query's own frame is
    that of its row.
    """
    rows = key_frame_ids.shape[1]
    in_prefix = torch.arange(rows, device=kv_end.device) < kv_end[:, :, None]
    query_frame_BS1 = key_frame_ids.gather(1, position_ids.clamp(min=0))[:, :, None]
    key_frame_B1C = key_frame_ids[:, None, :]
    other_frame = (query_frame_BS1 >= 0) & (key_frame_B1C >= 0) & (query_frame_BS1 != key_frame_B1C)
    return in_prefix & ~other_frame


class Mlp(nn.Module):
    """LLaMA's gated feed-forward network (SwiGLU)."""

    def __init__(self, text: TextConfig) -> None:
        super().__init__()
        hidden, wide, bias = text.hidden_size, text.intermediate_size, text.mlp_bias
        self.gate_proj = nn.Linear(hidden, wide, bias=bias)
        self.up_proj = nn.Linear(hidden, wide, bias=bias)
        self.down_proj = nn.Linear(wide, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, S, E] to the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text
        self.self_attn = Attention(config)
        self.mlp = Mlp(text)
        self.input_layernorm = RmsNorm(text.hidden_size, text.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(text.hidden_size, text.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        kv_end: Tensor,
        past: LayerCache,
        key_frame_ids: Tensor | None,
    ) -> tuple[Tensor, LayerCache]:
        """Return x after the layer, and the layer's cache after the call."""
        attended, present = self.self_attn(
            self.input_layernorm(x), rotary, kv_end, past, key_frame_ids
        )
        x = x + attended
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x, present


class Decoder(nn.Module):
    """The language model from embeddings to logits: the whole of the exported `decoder` graph."""

    inv_freq: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        text = config.text
        self.gamma = config.temporal.gamma
        self.mask = config.temporal.mask
        inv_freq, self.attention_factor = inverse_frequencies(text)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(text.num_hidden_layers))
        self.norm = RmsNorm(text.hidden_size, text.rms_norm_eps)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert the decoder; the frequencies move along, but keep their float32."""
        exact = self.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.inv_freq.dtype != exact.dtype:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor,
        temporal_ids: Tensor,
        kv_end: Tensor,
        logits_indices: Tensor,
        past: Cache,
        key_frame_ids: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """Run the decoder over S tokens that follow what the cache holds.

        Args:
            inputs_embeds: [B, S, E].
            position_ids: [B, S] int64, also the cache row of each token; -1 for padding.
            temporal_ids: [B, S] int64.
            kv_end: [B, S] int32, cache rows that each token sees; 0 for padding.
            logits_indices: [B, L] int64, the tokens of this call whose logits are wanted.
            past: the cache, with at least as many rows as positions, and one spare where a batch
                is padded.
            key_frame_ids: [B, C] int64, only for the mask `frame_block`.

        Returns:
            Logits [B, L, V], and the cache after the call.
        """
        if self.mask is AttentionMask.FRAME_BLOCK and key_frame_ids is None:
            raise ValueError("the mask frame_block needs key_frame_ids")
        rotary = Rotary(
            position_ids, temporal_ids, self.inv_freq, self.gamma, self.attention_factor
        )
        x = inputs_embeds
        present: Cache = []
        for layer, layer_past in zip(self.layers, past, strict=True):
            x, layer_present = layer(x, rotary, kv_end, layer_past, key_frame_ids)
            present.append(layer_present)
        wanted_BLE = x.gather(1, logits_indices[:, :, None].expand(-1, -1, x.shape[-1]))
        return self.lm_head(self.norm(wanted_BLE)), present
