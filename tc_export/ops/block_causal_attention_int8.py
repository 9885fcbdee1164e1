# SPDX-License-Identifier: Apache-2.0
"""`TcBlockCausalAttentionInt8`: `TcBlockCausalAttention` over a cache in int8.

New keys and values are rounded as they enter the cache (`tc_export.ops.quantized_rows`), and every
query attends to what the cache then holds, its own row too. So what is computed does not depend on
how a prompt was cut into calls.

Axes: B batch, K key/value heads, S tokens of this call, C cache rows, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tc_export.ops.block_causal_attention import attend_to_prefix, write_cache
from tc_export.ops.quantized_rows import dequantize_rows, quantize_rows

Int8Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def write_int8_cache(
    codes_BKCD: Tensor, scale_BKC: Tensor, new_BKSD: Tensor, slots_BS: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the cache with row slots[b, s] set to new[b, :, s], rounded; slot -1 is the last."""
    codes_BKSD, scale_BKS = quantize_rows(new_BKSD)
    scale_BKC1 = write_cache(scale_BKC[..., None], scale_BKS[..., None], slots_BS)
    return write_cache(codes_BKCD, codes_BKSD, slots_BS), scale_BKC1[..., 0]


def block_causal_attention_int8_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_end: Tensor,
    slots: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_key_scale: Tensor,
    past_value_scale: Tensor,
    scale: float,
) -> Int8Outputs:
    """Write the cache, then attend over its rows; results are contiguous."""
    key, key_scale = write_int8_cache(past_key, past_key_scale, k, slots)
    value, value_scale = write_int8_cache(past_value, past_value_scale, v, slots)
    # Rows that no query of the call sees are left out: a cache is mostly empty at first.
    seen = max(1, int(kv_end.max()))
    key_BKLD, value_BKLD = (
        dequantize_rows(codes[:, :, :seen], scales[:, :, :seen], q.dtype)
        for codes, scales in ((key, key_scale), (value, value_scale))
    )
    y = attend_to_prefix(q, key_BKLD, value_BKLD, kv_end, scale)
    outputs = (y, key, value, key_scale, value_scale)
    return tuple(x.contiguous() for x in outputs)  # type: ignore[return-value]


@torch.library.custom_op("tc::block_causal_attention_int8", mutates_args=())
def block_causal_attention_int8(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_end: Tensor,
    slots: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_key_scale: Tensor,
    past_value_scale: Tensor,
    scale: float,
) -> Int8Outputs:
    """`TcBlockCausalAttentionInt8` for PyTorch; see `BLOCK_CAUSAL_ATTENTION_INT8`.

    With q, k and v in float64 the scales are float64 too: the form that parity takes as the truth.
    """
    cache = (past_key, past_value, past_key_scale, past_value_scale)
    return block_causal_attention_int8_reference(q, k, v, kv_end, slots, *cache, scale)


@block_causal_attention_int8.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_end: Tensor,
    slots: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_key_scale: Tensor,
    past_value_scale: Tensor,
    scale: float,
) -> Int8Outputs:
    return (
        q.new_empty(q.shape),
        past_key.new_empty(past_key.shape),
        past_value.new_empty(past_value.shape),
        past_key_scale.new_empty(past_key_scale.shape),
        past_value_scale.new_empty(past_value_scale.shape),
    )
