# SPDX-License-Identifier: Apache-2.0
"""The two ops in float64 loops of NumPy, written from the definition of the method.

Axes: B batch, H query heads, K key/value heads, S tokens, C cache rows, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tc_export.contracts.ops import OpContract, TensorContract
from tc_export.dtypes import DType

SIZES = {"B": 2, "H": 4, "K": 2, "S": 3, "C": 5, "D": 7, "R": 3}


@dataclass(frozen=True)
class AttentionCase:
    """The inputs of one call of `TcBlockCausalAttention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    kv_end: Tensor
    slots: Tensor
    past_key: Tensor
    past_value: Tensor
    scale: float

    def inputs(self) -> tuple[Tensor, ...]:
        return (
            *(self.q, self.k, self.v, self.kv_end, self.slots),
            *(self.past_key, self.past_value),
        )


def expected_cache(past_BKCD: Tensor, new_BKSD: Tensor, slots_BS: Tensor) -> Tensor:
    """The cache after the call; padding (slot -1) is left unwritten."""
    cache = past_BKCD.clone()
    for b, s in np.ndindex(*slots_BS.shape):
        if slots_BS[b, s] >= 0:
            cache[b, :, slots_BS[b, s]] = new_BKSD[b, :, s]
    return cache


def expected_attention(case: AttentionCase) -> np.ndarray:
    """Softmax over the first kv_end rows of the cache, one query at a time."""
    key, value = (
        expected_cache(past, new, case.slots).double().numpy()
        for past, new in ((case.past_key, case.k), (case.past_value, case.v))
    )
    q = case.q.double().numpy()
    y = np.zeros(q.shape)
    group = q.shape[1] // key.shape[1]
    for b, h, s in np.ndindex(*q.shape[:3]):
        end = min(max(int(case.kv_end[b, s]), 0), key.shape[2])
        if end == 0:
            continue
        logits = key[b, h // group, :end] @ q[b, h, s] * case.scale
        weights = np.exp(logits - logits.max())
        y[b, h, s] = weights / weights.sum() @ value[b, h // group, :end]
    return y


def expected_rotation(
    x: Tensor, n: Tensor, t: Tensor, inv_freq: Tensor, gamma: float, factor: float
) -> np.ndarray:
    """Channels (k, k + R) turned by (n + gamma T) inv_freq[k], the angle rounded to float32."""
    position = n.numpy().astype(np.float32) + np.float32(gamma) * t.numpy().astype(np.float32)
    angle = (position[..., None] * inv_freq.numpy())[:, None].astype(np.float64)
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    half = inv_freq.shape[0]
    y = x.double().numpy().copy()
    first, second = y[..., :half].copy(), y[..., half : 2 * half].copy()
    y[..., :half] = first * cos - second * sin
    y[..., half : 2 * half] = second * cos + first * sin
    return y


def random_case(
    *,
    batch: int,
    heads: tuple[int, int],
    tokens: int,
    rows: int,
    head_dim: int,
    past: int,
    frame: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> AttentionCase:
    """Tokens after `past` rows, in frames that see themselves whole. Rows past them hold NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    q_heads, kv_heads = heads
    slots = torch.arange(past, past + tokens).repeat(batch, 1)
    ends = ((slots - past) // frame * frame + frame + past).clamp(max=past + tokens)
    cache = [normal(batch, kv_heads, rows, head_dim) for _ in range(2)]
    for tensor in cache:
        tensor[:, :, past + tokens :] = float("nan")
    return AttentionCase(
        normal(batch, q_heads, tokens, head_dim),
        normal(batch, kv_heads, tokens, head_dim),
        normal(batch, kv_heads, tokens, head_dim),
        ends.to(torch.int32),
        slots,
        cache[0],
        cache[1],
        0.8 * head_dim**-0.5,  # not what is usual: it must be asked for
    )


def ones_of(contract: OpContract, dtype: torch.dtype) -> list[Tensor]:
    """Inputs of the contract's shapes, that every kernel takes."""
    return tensors_of(contract.inputs, dtype)


def tensors_of(tensors: Iterable[TensorContract], dtype: torch.dtype) -> list[Tensor]:
    """Ones of the contract's shapes and types."""
    return [
        torch.ones(
            [SIZES[axis] for axis in t.axes],
            dtype=dtype if t.dtype == "T" else DType(t.dtype).torch,
        )
        for t in tensors
    ]


def of_wrong_shape(contract: OpContract, tensor: TensorContract, right: Tensor) -> list[Tensor]:
    """The input with an axis more or less, or of a size that another input has differently."""
    wrong = [right[None], right[..., None], right[0], right[..., 0]]
    for i, axis in enumerate(tensor.axes):
        if any(axis in other.axes for other in contract.inputs if other is not tensor):
            wrong += [right.narrow(i, 0, right.shape[i] - 1), torch.cat([right, right], dim=i)]
    return wrong
