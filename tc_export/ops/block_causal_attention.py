# SPDX-License-Identifier: Apache-2.0
"""`TcBlockCausalAttention`: attention whose mask is one integer a query row, over a fixed cache.

Query row i sees the first kv_end[i] rows of the cache. Text at position n has kv_end = n + 1; a
visual token has the end of its frame. One op serves prefill, chunked prefill and decode, and no
one ever builds the S x S mask.

The cache has a fixed number of rows. A token's row is its position, so padding never enters the
prefix. Slot -1 (padding) is the last row, as a negative index is in ONNX and NumPy: callers that
pad keep that row free, and a kernel may leave it unwritten.

Axes: B batch, H query heads, K key/value heads (H a multiple of K), S tokens of this call,
C cache rows, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tc_export.ops.autograd import differentiate_by_recomputing


def write_cache(cache_BKCD: Tensor, new_BKSD: Tensor, slots_BS: Tensor) -> Tensor:
    """Return the cache with row slots[b, s] set to new[b, :, s]; slot -1 is the last row."""
    batch = torch.arange(cache_BKCD.shape[0], device=cache_BKCD.device)[:, None]
    by_row = cache_BKCD.transpose(1, 2).index_put((batch, slots_BS), new_BKSD.transpose(1, 2))
    return by_row.transpose(1, 2)


def attend(
    q_BHSD: Tensor, key_BKCD: Tensor, value_BKCD: Tensor, visible_BSC: Tensor, scale: float
) -> Tensor:
    """Softmax attention in which query s of batch b sees key c where visible[b, s, c].

    A row that sees nothing gives zeros.
    """
    y = F.scaled_dot_product_attention(
        q_BHSD,
        key_BKCD,
        value_BKCD,
        attn_mask=visible_BSC[:, None],
        scale=scale,
        enable_gqa=bool(q_BHSD.shape[1] != key_BKCD.shape[1]),
    )
    sees_any_B1S1 = visible_BSC.any(dim=-1)[:, None, :, None]
    return torch.where(sees_any_B1S1, y, torch.zeros((), dtype=y.dtype, device=y.device))


def attend_to_prefix(
    q_BHSD: Tensor, key_BKCD: Tensor, value_BKCD: Tensor, kv_end_BS: Tensor, scale: float
) -> Tensor:
    """Softmax attention in which query s of batch b sees the first kv_end[b, s] keys."""
    row_C = torch.arange(key_BKCD.shape[2], device=q_BHSD.device)
    return attend(q_BHSD, key_BKCD, value_BKCD, row_C < kv_end_BS[:, :, None], scale)


def block_causal_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_end: Tensor,
    slots: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the cache, then attend over its rows.

    No shape depends on a value, so that the gradient, which runs this, can be traced.
    """
    present_key = write_cache(past_key, k, slots)
    present_value = write_cache(past_value, v, slots)
    y = attend_to_prefix(q, present_key, present_value, kv_end, scale)
    return y, present_key, present_value


@torch.library.custom_op("tc::block_causal_attention", mutates_args=())
def block_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_end: Tensor,
    slots: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`TcBlockCausalAttention` for PyTorch; see `BLOCK_CAUSAL_ATTENTION` for shapes and types."""
    key = write_cache(past_key, k, slots).contiguous()
    value = write_cache(past_value, v, slots).contiguous()
    # Rows that no query of the call sees are left out: a cache is mostly empty at first.
    seen = max(1, int(kv_end.max()))
    y = attend_to_prefix(q, key[:, :, :seen], value[:, :, :seen], kv_end, scale)
    return y.contiguous(), key, value


@block_causal_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_end: Tensor,
    slots: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        q.new_empty(q.shape),
        past_key.new_empty(past_key.shape),
        past_value.new_empty(past_value.shape),
    )


differentiate_by_recomputing(block_causal_attention, block_causal_attention_reference)
