# SPDX-License-Identifier: Apache-2.0
"""The emulated library through its C interface, against the method's definition in float64.

The reference looks at every pair of tokens (clip and frame of each), as the definition does; it
knows neither kv_end nor a cache.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tc_export.config import TemporalConfig
from tc_export.model.positions import Clip, Segment, Text, lay_out
from tc_export.ops.native import DTYPES, AttentionArgs, DualRopeArgs

Floats = NDArray[np.float64]

segments = st.lists(
    st.one_of(
        st.builds(Text, st.integers(1, 9)),
        st.builds(Clip, st.integers(1, 4), st.integers(1, 8)),
    ),
    min_size=1,
    max_size=5,
)
types = st.sampled_from([torch.float16, torch.bfloat16])
# Half of the distance between 1 and the next larger number.
ROUNDOFF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def visible(parts: list[Segment]) -> NDArray[np.bool_]:
    """Which token sees which: `frame_block_causal`, pair by pair."""
    tokens = [
        (number, index // part.tokens_per_frame) if isinstance(part, Clip) else (-1, -1)
        for number, part in enumerate(parts)
        for index in range(part.length)
    ]
    pairs = [
        [
            j <= i or (query[0] >= 0 and query[0] == key[0] and key[1] <= query[1])
            for j, key in enumerate(tokens)
        ]
        for i, query in enumerate(tokens)
    ]
    return np.array(pairs)


def attention(q_HSD: Floats, k_KSD: Floats, v_KSD: Floats, mask_SS: NDArray[np.bool_]) -> Floats:
    """Softmax attention with a dense mask; scale 1 / sqrt(D)."""
    group = q_HSD.shape[0] // k_KSD.shape[0]
    k_HSD, v_HSD = np.repeat(k_KSD, group, axis=0), np.repeat(v_KSD, group, axis=0)
    logits_HSS = q_HSD @ k_HSD.transpose(0, 2, 1) / np.sqrt(q_HSD.shape[-1])
    logits_HSS[:, ~mask_SS] = -np.inf
    weights_HSS = np.exp(logits_HSS - logits_HSS.max(axis=-1, keepdims=True))
    return np.asarray(weights_HSS / weights_HSS.sum(axis=-1, keepdims=True) @ v_HSD)


@dataclass(frozen=True)
class Sequence:
    """Queries, keys and values of a whole sequence, and the cache that grows with it."""

    q: torch.Tensor  # [1, H, S, D]
    k: torch.Tensor  # [1, K, S, D]
    v: torch.Tensor
    kv_end: torch.Tensor  # [1, S]
    key_cache: torch.Tensor  # [1, K, C, D]
    value_cache: torch.Tensor

    def attend(self, library: ctypes.CDLL, start: int, stop: int) -> torch.Tensor:
        """y of tokens [start, stop); writes their keys and values into the cache."""
        q, k, v = (x[:, :, start:stop].contiguous() for x in (self.q, self.k, self.v))
        kv_end = self.kv_end[:, start:stop].contiguous()
        slots = torch.arange(start, stop)
        y = torch.empty_like(q)
        args = AttentionArgs(
            DTYPES[q.dtype],
            *(1, q.shape[1], k.shape[1], stop - start, self.key_cache.shape[2], q.shape[3]),
            q.shape[3] ** -0.5,
            *(x.data_ptr() for x in (q, k, v, kv_end, slots)),
            *(x.data_ptr() for x in (self.key_cache, self.value_cache)),
            *(x.data_ptr() for x in (y, self.key_cache, self.value_cache)),
        )
        size = library.tc_cuda_block_causal_attention_workspace(ctypes.byref(args))
        workspace = ctypes.create_string_buffer(size + 8)
        status = library.tc_cuda_block_causal_attention(ctypes.byref(args), workspace, size, None)
        assert status == 0, library.tc_emulator_violation()
        return y


def make_sequence(
    parts: list[Segment], dtype: torch.dtype, heads: tuple[int, int], size: int, seed: int
) -> Sequence:
    """Normal numbers; the cache holds NaN until it is written."""
    layout, _ = lay_out(parts, TemporalConfig())
    generator = torch.Generator().manual_seed(seed)

    def random(count: int) -> torch.Tensor:
        return torch.randn(1, count, layout.length, size, generator=generator).to(dtype)

    cache = torch.full((2, 1, heads[1], layout.length + 3, size), torch.nan, dtype=dtype)
    kv_end = torch.from_numpy(layout.kv_end)[None]
    return Sequence(random(heads[0]), random(heads[1]), random(heads[1]), kv_end, *cache)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    parts=segments,
    dtype=types,
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 9),
    size=st.sampled_from([64, 80, 96, 128]),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_attention_is_the_method_however_it_is_cut(
    emulated: ctypes.CDLL,
    parts: list[Segment],
    dtype: torch.dtype,
    kv_heads: int,
    group: int,
    size: int,
    seed: int,
    data: st.DataObject,
) -> None:
    sequence = make_sequence(parts, dtype, (kv_heads * group, kv_heads), size, seed)
    # Cut anywhere except inside a frame: the cut is at n where nobody before n sees n.
    ends = sequence.kv_end[0].tolist()
    cuts = [n for n in range(1, len(ends)) if max(ends[:n]) <= n]
    cut = data.draw(st.sampled_from([0, *cuts]))
    bounds = [0, cut, len(ends)] if cut else [0, len(ends)]
    spans = pairwise(bounds)
    y = torch.cat([sequence.attend(emulated, *span) for span in spans], dim=2)[0]
    q, k, v = (x[0].double().numpy() for x in (sequence.q, sequence.k, sequence.v))
    expected = attention(q, k, v, visible(parts))
    magnitude = attention(q, k, np.abs(v), visible(parts))
    tolerance = 1.05 * ROUNDOFF[dtype] * (np.abs(expected) + magnitude) + 1e-5 + 3e-5 * magnitude
    assert np.all(np.abs(y.double().numpy() - expected) <= tolerance)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    parts=segments,
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    heads=st.integers(1, 6),
    half=st.integers(1, 20),
    rest=st.integers(0, 9),
    gamma=st.sampled_from([0.0, 0.1, 1.0, 2.5]),
    seed=st.integers(0, 9),
)
def test_rotation_is_two_rotations(
    emulated: ctypes.CDLL,
    parts: list[Segment],
    dtype: torch.dtype,
    heads: int,
    half: int,
    rest: int,
    gamma: float,
    seed: int,
) -> None:
    """R(gamma T) R(n) x, one after the other and in complex numbers, is what the op gives."""
    layout, _ = lay_out(parts, TemporalConfig(gamma=gamma))
    generator = torch.Generator().manual_seed(seed)
    shape = (1, heads, layout.length, 2 * half + rest)
    x = torch.randn(shape, generator=generator).to(dtype)
    n, t = (torch.from_numpy(ids)[None] for ids in (layout.position_ids, layout.temporal_ids))
    inv_freq = 100.0 ** -(torch.arange(half) / half)
    y = torch.full_like(x, torch.nan)
    args = DualRopeArgs(
        DTYPES[dtype],
        *(1, heads, layout.length, shape[-1], half),
        gamma,
        1.0,
        *(tensor.data_ptr() for tensor in (x, n, t, inv_freq, y)),
    )
    assert emulated.tc_cuda_dual_rope(ctypes.byref(args), None) == 0

    wide, frequency = x.double().numpy(), inv_freq.double().numpy()
    pairs = wide[..., :half] + 1j * wide[..., half : 2 * half]
    for position in (n[0].numpy(), gamma * t[0].numpy()):
        pairs = pairs * np.exp(1j * np.multiply.outer(position, frequency))
    expected = np.concatenate([pairs.real, pairs.imag, wide[..., 2 * half :]], axis=-1)
    # Angles to 250 in float32 are off by 2e-5.
    tolerance = ROUNDOFF.get(dtype, 2.0**-24) * np.abs(expected) + 2e-4
    assert np.all(np.abs(y.double().numpy() - expected) <= tolerance)


@pytest.mark.parametrize(("field", "value", "status"), [("tokens", 0, 1), ("head_dim", 48, 2)])
def test_bad_sizes_are_refused(emulated: ctypes.CDLL, field: str, value: int, status: int) -> None:
    memory = ctypes.create_string_buffer(64)
    pointers = [ctypes.addressof(memory) // 16 * 16 + 16] * 10
    args = AttentionArgs(1, 1, 1, 1, 1, 1, 64, 1.0, *pointers)
    setattr(args, field, value)
    assert emulated.tc_cuda_block_causal_attention_workspace(ctypes.byref(args)) == 0
    found = emulated.tc_cuda_block_causal_attention(ctypes.byref(args), None, 0, None)
    assert found == status
