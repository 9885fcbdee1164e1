# SPDX-License-Identifier: Apache-2.0
"""`tc_cpu_block_causal_attention_int8` against the definition, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tc_export.ops.native import DTYPES, NativeKernels
from tests.plugins.cpu.definition import (
    AttentionCase,
    expected_attention,
    expected_cache,
    random_case,
)
from tests.plugins.cpu.test_attention import CASES, error_of


def coded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows [..., D], in NumPy's float32: its `rint` takes ties to even."""
    wide = rows.float().numpy()
    scale = np.abs(wide).max(axis=-1) / np.float32(127)
    divisor = np.where(scale > 0, scale, np.float32(1))[..., None]
    with np.errstate(invalid="ignore"):  # infinity over infinity
        codes = np.clip(np.rint(wide / divisor), -127, 127)
    return torch.from_numpy(np.nan_to_num(codes).astype(np.int8)), torch.from_numpy(scale)


def int8_cache(case: AttentionCase) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes and scales of the past; those of rows past it are 127 and NaN."""
    (key, key_scale), (value, value_scale) = coded(case.past_key), coded(case.past_value)
    for codes, scale in ((key, key_scale), (value, value_scale)):
        codes[scale.isnan()] = 127
    return key, value, key_scale, value_scale


def expected_parts(case: AttentionCase, cache: tuple[Tensor, ...]) -> list[Tensor]:
    """The cache after the call: key, value, and their scales."""
    key, value, key_scale, value_scale = cache
    (new_key, new_key_scale), (new_value, new_value_scale) = coded(case.k), coded(case.v)
    return [
        expected_cache(key, new_key, case.slots),
        expected_cache(value, new_value, case.slots),
        expected_cache(key_scale, new_key_scale, case.slots),
        expected_cache(value_scale, new_value_scale, case.slots),
    ]


def expected_y(case: AttentionCase, parts: list[Tensor]) -> np.ndarray:
    """Attention over what codes and scales stand for, in float64."""
    key, value = (
        codes.double() * scales.double()[..., None]
        for codes, scales in zip(parts[:2], parts[2:], strict=True)
    )
    # Nothing is left to be written.
    unwritten = replace(case, past_key=key, past_value=value, slots=torch.full_like(case.slots, -1))
    return expected_attention(unwritten)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_definition(kernels: NativeKernels, name: str, dtype: torch.dtype) -> None:
    case = random_case(**{"past": 0, **CASES[name]}, dtype=dtype)
    cache = int8_cache(case)
    y, *present = kernels.block_causal_attention_int8(*case.inputs()[:5], *cache, case.scale)
    parts = expected_parts(case, cache)
    for found, expected in zip(present, parts, strict=True):
        same(found, expected)
    # Sums in float32, and one rounding of y, whose values are below five.
    assert error_of(y, expected_y(case, parts)) <= 1e-5 + 5 * torch.finfo(dtype).eps / 2


def test_in_place_nothing_else_is_written(kernels: NativeKernels) -> None:
    case = random_case(batch=2, heads=(4, 2), tokens=7, rows=30, head_dim=48, past=11, frame=7)
    cache = int8_cache(case)
    apart = kernels.block_causal_attention_int8(*case.inputs()[:5], *cache, case.scale)
    kept = [part.clone() for part in cache]
    inside = kernels.block_causal_attention_int8(
        *case.inputs()[:5], *kept, case.scale, in_place=True
    )
    assert [x.data_ptr() for x in inside[1:]] == [x.data_ptr() for x in kept]
    for found, expected in zip(inside, apart, strict=True):
        same(found, expected)
    for part, before in zip(cache, int8_cache(case), strict=True):
        same(part, before)


def test_chunks_of_whole_frames_equal_one_prefill(kernels: NativeKernels) -> None:
    whole = random_case(batch=1, heads=(4, 2), tokens=60, rows=64, head_dim=32, past=0, frame=12)
    empty = [torch.zeros_like(part) for part in int8_cache(whole)]
    y, *present = kernels.block_causal_attention_int8(*whole.inputs()[:5], *empty, whole.scale)
    cache = [torch.zeros_like(part) for part in empty]
    parts = []
    for first, last in ((0, 12), (12, 48), (48, 60)):
        part = [x[:, :, first:last] for x in (whole.q, whole.k, whole.v)]
        part += [x[:, first:last] for x in (whole.kv_end, whole.slots)]
        y_part, *_ = kernels.block_causal_attention_int8(*part, *cache, whole.scale, in_place=True)
        parts.append(y_part)
    torch.testing.assert_close(torch.cat(parts, dim=2), y, rtol=0, atol=1e-6)
    for found, expected in zip(cache, present, strict=True):
        assert torch.equal(found[:, :, :60], expected[:, :, :60])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [1, 5, 33, 64])
def test_codes_of_rows_of_every_kind(
    kernels: NativeKernels, head_dim: int, dtype: torch.dtype
) -> None:
    """Zeros, ties, outliers, numbers so small that their scale has no digits, and no numbers."""
    case = random_case(batch=1, heads=(1, 1), tokens=8, rows=8, head_dim=head_dim, past=0)
    k = case.k.clone()
    k[0, 0, 0] = 0
    k[0, 0, 1] = torch.arange(head_dim) - head_dim / 2
    k[0, 0, 2, 0] = 3e4
    k[0, 0, 3] *= 1e-7
    k[0, 0, 4] *= 1e-43 if dtype == torch.float32 else 1e-6
    k[0, 0, 5, -1] = torch.nan
    k[0, 0, 6, -1] = -torch.inf
    case = replace(case, q=case.q.to(dtype), k=k.to(dtype), v=case.v.to(dtype))
    cache = [torch.zeros_like(part) for part in int8_cache(case)]
    _, *present = kernels.block_causal_attention_int8(*case.inputs()[:5], *cache, case.scale)
    parts = expected_parts(case, tuple(cache))
    finite = [0, 1, 2, 3, 4, 7]
    for found, expected in zip(present, parts, strict=True):
        same(found[:, :, finite], expected[:, :, finite])
    assert not present[2][0, 0, 5:7].isfinite().any()
