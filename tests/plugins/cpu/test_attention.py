# SPDX-License-Identifier: Apache-2.0
"""`tc_cpu_block_causal_attention` against the definition, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tc_export.native.find import NativeLibrary
from tc_export.ops.block_causal_attention import block_causal_attention_reference
from tc_export.ops.native import DTYPES, NativeKernels
from tests.plugins.cpu.definition import (
    AttentionCase,
    expected_attention,
    expected_cache,
    random_case,
)

CASES = {
    "prefill": {"batch": 1, "heads": (2, 2), "tokens": 150, "rows": 150, "head_dim": 64},
    "two tiles of grouped heads": {
        **{"batch": 1, "heads": (6, 2), "tokens": 70, "rows": 96, "head_dim": 128, "frame": 9},
    },
    "largest head": {"batch": 1, "heads": (2, 1), "tokens": 20, "rows": 97, "head_dim": 256},
    "chunk of a long cache": {
        **{"batch": 2, "heads": (2, 1), "tokens": 24, "rows": 500, "head_dim": 80},
        **{"past": 400, "frame": 8},
    },
    "decode": {"batch": 2, "heads": (4, 4), "tokens": 1, "rows": 300, "head_dim": 128, "past": 290},
    "decode of grouped heads, in parts": {
        **{"batch": 1, "heads": (3, 1), "tokens": 1, "rows": 1600, "head_dim": 64, "past": 1590},
    },
    "eight rows": {
        "batch": 1,
        "heads": (2, 2),
        "tokens": 8,
        "rows": 800,
        "head_dim": 96,
        "past": 7,
    },
    "nine rows": {
        "batch": 1,
        "heads": (9, 1),
        "tokens": 1,
        "rows": 800,
        "head_dim": 96,
        "past": 700,
    },
    "tiny head": {"batch": 1, "heads": (4, 2), "tokens": 13, "rows": 20, "head_dim": 8, "frame": 4},
    "odd head": {"batch": 1, "heads": (1, 1), "tokens": 13, "rows": 20, "head_dim": 5},
    "one of everything": {"batch": 1, "heads": (1, 1), "tokens": 1, "rows": 1, "head_dim": 1},
}


def error_of(y: Tensor, expected: np.ndarray) -> float:
    return float(np.abs(y.double().numpy() - expected).max())


def tolerance(case: AttentionCase, expected: np.ndarray) -> float:
    """Twice the error of PyTorch's own attention in the same type, and one rounding of y."""
    finite = replace(
        case, past_key=case.past_key.nan_to_num(), past_value=case.past_value.nan_to_num()
    )
    plain = block_causal_attention_reference(*finite.inputs(), case.scale)[0]
    return 2 * error_of(plain, expected) + 2 * torch.finfo(case.q.dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_definition(kernels: NativeKernels, name: str, dtype: torch.dtype) -> None:
    case = random_case(**{"past": 0, **CASES[name]}, dtype=dtype)
    y, key, value = kernels.block_causal_attention(*case.inputs(), case.scale)
    expected = expected_attention(case)
    assert error_of(y, expected) <= tolerance(case, expected)
    for present, past, new in ((key, case.past_key, case.k), (value, case.past_value, case.v)):
        written = expected_cache(past, new, case.slots)
        torch.testing.assert_close(present, written, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 140),
    free_rows=st.integers(0, 120),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    head_dim=st.sampled_from([2, 16, 33, 64]),
    seed=st.integers(0, 2**31),
)
def test_any_ends_and_slots(
    library: NativeLibrary,
    tokens: int,
    free_rows: int,
    heads: tuple[int, int],
    head_dim: int,
    seed: int,
) -> None:
    """Rows see any number of keys, in any order; slots repeat, are skipped, or are padding."""
    rows = tokens + free_rows
    case = random_case(
        batch=2, heads=heads, tokens=tokens, rows=rows, head_dim=head_dim, past=free_rows, seed=seed
    )
    random = np.random.default_rng(seed)
    case = replace(
        case,
        kv_end=torch.tensor(random.integers(-3, rows + 4, (2, tokens)), dtype=torch.int32),
        slots=torch.tensor(random.integers(-1, rows, (2, tokens))),  # the last one wins
    )
    expected = expected_attention(case)
    for isa in (1, 0):
        kernels = NativeKernels(library.handle, isa=isa)
        y, key, _ = kernels.block_causal_attention(*case.inputs(), case.scale)
        # Logits of ten hold 1e-6 in float32, weights are off by as much, and values reach four.
        assert error_of(y, expected) <= 1e-5
        assert torch.equal(key, expected_cache(case.past_key, case.k, case.slots))


def test_chunks_of_whole_frames_equal_one_prefill(kernels: NativeKernels) -> None:
    whole = random_case(batch=1, heads=(4, 2), tokens=60, rows=64, head_dim=32, past=0, frame=12)
    y, key, value = kernels.block_causal_attention(*whole.inputs(), whole.scale)
    parts = []
    cache = (torch.zeros_like(whole.past_key), torch.zeros_like(whole.past_value))
    for first, last in ((0, 12), (12, 48), (48, 60)):
        part = [x[:, :, first:last] for x in (whole.q, whole.k, whole.v)]
        part += [x[:, first:last] for x in (whole.kv_end, whole.slots)]
        y_part, *_ = kernels.block_causal_attention(*part, *cache, whole.scale, in_place=True)
        parts.append(y_part)
    torch.testing.assert_close(torch.cat(parts, dim=2), y, rtol=0, atol=1e-6)
    assert torch.equal(cache[0][:, :, :60], key[:, :, :60])
    assert torch.equal(cache[1][:, :, :60], value[:, :, :60])


def test_the_result_does_not_depend_on_threads(kernels: NativeKernels) -> None:
    case = random_case(batch=1, heads=(3, 1), tokens=2, rows=3000, head_dim=64, past=2900)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(kernels.block_causal_attention(*case.inputs(), case.scale)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_strided_inputs(kernels: NativeKernels) -> None:
    """Heads come out of a projection transposed, not contiguous."""
    case = random_case(batch=2, heads=(4, 2), tokens=9, rows=20, head_dim=16, past=3)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (case.q, case.k, case.v)]
    assert not strided[0].is_contiguous()
    y, *_ = kernels.block_causal_attention(*strided, *case.inputs()[3:], case.scale)
    assert error_of(y, expected_attention(case)) <= 2e-6


def test_large_logits_do_not_overflow(kernels: NativeKernels) -> None:
    case = random_case(batch=1, heads=(1, 1), tokens=40, rows=40, head_dim=32, past=0)
    case = replace(case, q=case.q * 1000, k=case.k * 1000)
    y, *_ = kernels.block_causal_attention(*case.inputs(), case.scale)
    assert error_of(y, expected_attention(case)) <= 1e-2  # logits of 1e6 keep four digits


def test_an_unseen_key_of_a_huge_logit_does_not_matter(kernels: NativeKernels) -> None:
    """Were it to count in the maximum, all weights that are seen would vanish beside it."""
    case = random_case(batch=1, heads=(1, 1), tokens=40, rows=40, head_dim=32, past=0)
    case.k[:, :, -1] *= 500
    y, *_ = kernels.block_causal_attention(*case.inputs(), case.scale)
    assert error_of(y, expected_attention(case)) <= 1e-5


def test_parts_of_far_logits_are_joined(kernels: NativeKernels) -> None:
    """One part of a split decode outweighs the others by more than float32 can hold."""
    case = random_case(batch=1, heads=(2, 1), tokens=1, rows=1600, head_dim=64, past=1590)
    case.past_key[:, :, 1500:1550] *= 300
    y, *_ = kernels.block_causal_attention(*case.inputs(), case.scale)
    assert error_of(y, expected_attention(case)) <= 1e-3  # logits of 300 keep five digits
