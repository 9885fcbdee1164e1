# SPDX-License-Identifier: Apache-2.0
"""`TcBlockCausalAttentionInt8`: the PyTorch op against float64 loops, and its export."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tc_export import ops
from tc_export.ops.quantized_rows import dequantize_rows, quantize_rows
from tests.ops import brute_force, test_block_causal_attention
from tests.ops.test_block_causal_attention import CASES, Case


def arguments(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """As for the cache in floating point; what the cache holds before is codes and scales."""
    *new, past_key, past_value, scale = test_block_causal_attention.arguments(case, dtype)
    (key, key_scale), (value, value_scale) = map(quantize_rows, (past_key, past_value))
    return (*new, key, value, key_scale, value_scale, scale)


def coded(row: list[float]) -> tuple[list[int], float]:
    """A row's codes and scale; `round` is to the nearest, and of two the even one."""
    scale = max(map(abs, row)) / 127
    return [round(x / scale) if scale else 0 for x in row], scale


def expected_of(call: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Loops: rows are coded one by one, written, decoded, and attended to."""
    q, k, v, kv_end, slots, key, value, key_scale, value_scale = (x.tolist() for x in call[:-1])
    caches = []
    for new, codes, scales in ((k, key, key_scale), (v, value, value_scale)):
        rows = [[[coded(row) for row in head] for head in heads] for heads in new]
        new_codes = [[[codes for codes, _ in head] for head in heads] for heads in rows]
        new_scales = [[[[scale] for _, scale in head] for head in heads] for heads in rows]
        held = [[[[scale] for scale in head] for head in heads] for heads in scales]
        caches.append(
            (
                brute_force.write_cache(codes, new_codes, slots),
                brute_force.write_cache(held, new_scales, slots),
            )
        )
    plain = [
        [
            [[code * of[0] for code in row] for row, of in zip(*head, strict=True)]
            for head in zip(*heads, strict=True)
        ]
        for codes, scales in caches
        for heads in zip(codes, scales, strict=True)
    ]
    batch = len(plain) // 2
    y = brute_force.attention(q, plain[:batch], plain[batch:], kv_end, call[-1])
    (key, key_scale), (value, value_scale) = caches
    codes = (torch.tensor(x, dtype=torch.int8) for x in (key, value))
    scales = (torch.tensor(x, dtype=torch.float64)[..., 0] for x in (key_scale, value_scale))
    return torch.tensor(y, dtype=torch.float64), *codes, *scales


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_loops(case: Case) -> None:
    call = arguments(case)
    found, expected = ops.block_causal_attention_int8(*call), expected_of(call)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    real_rows = case.rows - int(case.padded > 0)  # padding may be written to the last row
    for cache, expected_cache in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(cache[:, :, :real_rows], expected_cache[:, :, :real_rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_narrow_types(case: Case, dtype: torch.dtype) -> None:
    """y to a few roundings of the largest value; codes and scales as float32 gives them."""
    call = arguments(case, dtype)
    found = ops.block_causal_attention_int8(*call)
    y, key, value, key_scale, value_scale = found
    assert y.dtype == dtype
    real_rows = case.rows - int(case.padded > 0)
    wide = ops.block_causal_attention_int8(*(x.float() for x in call[:3]), *call[3:])
    for cache, expected in zip(found[1:], wide[1:], strict=True):
        assert torch.equal(cache[:, :, :real_rows], expected[:, :, :real_rows])
    values = dequantize_rows(value, value_scale, torch.float64)
    plain = (x.tolist() for x in (dequantize_rows(key, key_scale, torch.float64), values))
    expected = brute_force.attention(call[0].tolist(), *plain, call[3].tolist(), call[-1])
    room = 8 * torch.finfo(dtype).eps * float(values.abs().max())
    torch.testing.assert_close(
        y.double(), torch.tensor(expected, dtype=torch.float64), rtol=0.0, atol=room
    )


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_any_row(row: list[float]) -> None:
    """Every code is the nearest that there is, however large or small the numbers are."""
    codes, scale = quantize_rows(torch.tensor(row, dtype=torch.float32))
    assert codes.dtype == torch.int8
    assert scale.dtype == torch.float32
    assert int(codes.abs().max()) <= 127
    step = Fraction(float(scale))
    assert abs(step - max(map(abs, map(Fraction, row))) / 127) <= max(
        step * Fraction(2) ** -24, Fraction(2) ** -150
    )
    if step < Fraction(2) ** -126:
        return  # a subnormal scale has lost its digits, and codes at the end with it
    for code, x in zip(codes.tolist(), row, strict=True):
        off = abs(Fraction(x) / step - code)
        assert off <= Fraction(1, 2) + Fraction(127, 2**22)


def test_ties_go_to_even_and_signs_are_kept() -> None:
    row = torch.tensor([127.0, 0.5, 1.5, -0.5, -1.5, 2.5, -126.5])
    codes, scale = quantize_rows(row)
    assert float(scale) == 1.0
    assert codes.tolist() == [127, 0, 2, 0, -2, 2, -126]


def test_a_row_of_zeros_stays_one() -> None:
    codes, scale = quantize_rows(torch.zeros(2, 3))
    assert not codes.any()
    assert not scale.any()
    assert torch.equal(dequantize_rows(codes, scale, torch.float32), torch.zeros(2, 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_visible(bad: float) -> None:
    rows = torch.tensor([[1.0, bad, 2.0], [1.0, 3.0, 2.0]])
    plain = dequantize_rows(*quantize_rows(rows), torch.float32)
    assert not plain[0].isfinite().any()
    assert plain[1].isfinite().all()


def test_a_row_is_not_disturbed_by_an_outlier_in_another() -> None:
    """A scale for each row of each head: 1e30 beside it costs a row nothing."""
    rows = torch.randn(2, 3, 4, 8)
    alone = dequantize_rows(*quantize_rows(rows), torch.float32)
    rows[1, 2, 3, 0] = 1e30
    beside = dequantize_rows(*quantize_rows(rows), torch.float32)
    changed = (beside != alone).any(-1)
    assert changed.sum() == 1
    assert changed[1, 2, 3]


def test_a_prompt_may_be_cut_into_calls() -> None:
    """What a later call reads is what the first call itself attended to."""
    call = arguments(Case(tokens=6, rows=9, frame=3))
    whole = ops.block_causal_attention_int8(*call)
    tensors, cache, scale = call[:5], call[5:9], call[-1]
    parts = []
    for part in (slice(0, 3), slice(3, 6)):
        some = [x[..., part, :] if x.dim() == 4 else x[:, part] for x in tensors]
        y, *cache = ops.block_causal_attention_int8(*some, *cache, scale)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=2), whole[0], rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(cache, whole[1:], strict=True))


def test_the_past_is_not_changed() -> None:
    call = arguments(Case(start=3))
    before = [tensor.clone() for tensor in call[:-1]]
    ops.block_causal_attention_int8(*call)
    assert all(torch.equal(a, b) for a, b in zip(before, call[:-1], strict=True))


@pytest.mark.parametrize("name", ["decode", "padding"])
def test_opcheck(name: str) -> None:
    call = arguments(CASES[name], torch.float32)
    torch.library.opcheck(torch.ops.tc.block_causal_attention_int8.default, call)
