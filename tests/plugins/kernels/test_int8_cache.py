# SPDX-License-Identifier: Apache-2.0
"""`tc_cuda_block_causal_attention_int8` on the emulator, against codes and loops of its own.

What no token was written to has scales that are NaN: a kernel that lets such a row in shows.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from tc_export.ops.native import DTYPES, AttentionInt8Args
from tests.plugins.cpu.definition import AttentionCase, random_case
from tests.plugins.cpu.test_attention_int8 import expected_parts, expected_y, int8_cache, same

CASES = {
    "prefill": {"batch": 1, "heads": (2, 2), "tokens": 100, "rows": 110, "head_dim": 64},
    "grouped heads": {
        **{"batch": 1, "heads": (6, 2), "tokens": 40, "rows": 50, "head_dim": 128, "frame": 9},
    },
    "chunk of a long cache": {
        **{"batch": 2, "heads": (4, 1), "tokens": 24, "rows": 300, "head_dim": 80},
        **{"past": 200, "frame": 8},
    },
    "96 channels": {"batch": 1, "heads": (3, 1), "tokens": 30, "rows": 61, "head_dim": 96},
    "256 channels": {"batch": 1, "heads": (2, 1), "tokens": 70, "rows": 90, "head_dim": 256},
    "decode": {"batch": 2, "heads": (4, 4), "tokens": 1, "rows": 90, "head_dim": 128, "past": 77},
    "decode in parts": {
        **{"batch": 1, "heads": (3, 1), "tokens": 2, "rows": 700, "head_dim": 64, "past": 650},
    },
    "decode of 256 channels": {
        **{"batch": 1, "heads": (2, 1), "tokens": 1, "rows": 200, "head_dim": 256, "past": 140},
    },
}
EPSILON = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def call(
    library: ctypes.CDLL, case: AttentionCase, cache: tuple[Tensor, ...], *, in_place: bool
) -> tuple[Tensor, ...]:
    """y and the cache after one call; the emulator guards all that it may read and write."""
    new = [x.contiguous() for x in case.inputs()[:5]]
    past = [x.clone() for x in cache]
    present = past if in_place else [torch.empty_like(x) for x in past]
    y = torch.full_like(new[0], torch.nan)
    batch, q_heads, tokens, head_dim = case.q.shape
    sizes = (batch, q_heads, case.k.shape[1], tokens, past[0].shape[2], head_dim)
    pointers = (x.data_ptr() for x in (*new, *past, y, *present))
    args = AttentionInt8Args(DTYPES[case.q.dtype], *sizes, case.scale, *pointers)
    workspace_of = library.tc_cuda_block_causal_attention_int8_workspace
    workspace_of.restype = ctypes.c_size_t
    size = workspace_of(ctypes.byref(args))
    workspace = torch.full((size // 4 + 1,), torch.nan)

    def declare(pointer: int, nbytes: int, writable: int) -> None:
        library.tc_emulator_declare_memory(
            ctypes.c_void_p(pointer), ctypes.c_size_t(nbytes), writable
        )

    library.tc_emulator_forget_memory()
    for tensor in new:
        declare(tensor.data_ptr(), tensor.nbytes, 0)
    for tensor in (y, *present):
        declare(tensor.data_ptr(), tensor.nbytes, 1)
    declare(workspace.data_ptr(), size, 1)
    status = library.tc_cuda_block_causal_attention_int8(
        ctypes.byref(args), ctypes.c_void_p(workspace.data_ptr()), ctypes.c_size_t(size), None
    )
    library.tc_emulator_forget_memory()
    assert status == 0, library.tc_emulator_violation()
    return y, *present


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "copied"])
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_definition(
    emulated: ctypes.CDLL, name: str, dtype: torch.dtype, in_place: bool
) -> None:
    case = random_case(**{"past": 0, **CASES[name]}, dtype=dtype)
    cache = int8_cache(case)
    y, *present = call(emulated, case, cache, in_place=in_place)
    parts = expected_parts(case, cache)
    for found, expected in zip(present, parts, strict=True):
        same(found, expected)
    # A rounding of each key, of each value, of each weight and of y. Scores are below four, and
    # what a rounding of a key moves them by moves a weight by as much of itself.
    room = (
        6
        * EPSILON[dtype]
        * float((parts[1].float() * parts[3][..., None]).abs().nan_to_num().max())
    )
    assert np.abs(y.double().numpy() - expected_y(case, parts)).max() <= room


def test_slots_and_ends_out_of_range(emulated: ctypes.CDLL) -> None:
    case = random_case(
        batch=1, heads=(2, 1), tokens=5, rows=9, head_dim=64, past=0, dtype=torch.float16
    )
    cache = tuple(torch.ones_like(x) for x in int8_cache(case))
    out = replace(
        case,
        slots=torch.tensor([[0, -1, 9, -7, 4]]),
        kv_end=torch.tensor([[1, -5, 1, 2**31 - 1, 0]], dtype=torch.int32),
    )
    y, *present = call(emulated, out, cache, in_place=True)
    inside = replace(out, slots=torch.tensor([[0, -1, -1, -1, 4]]))
    parts = expected_parts(inside, cache)
    for found, expected in zip(present, parts, strict=True):
        same(found, expected)
    assert np.abs(y.double().numpy() - expected_y(inside, parts)).max() <= 0.02
    assert not y[0, :, [1, 4]].any()


@pytest.mark.parametrize(("field", "value", "status"), [("tokens", 0, 1), ("head_dim", 48, 2)])
def test_bad_sizes_are_refused(emulated: ctypes.CDLL, field: str, value: int, status: int) -> None:
    memory = ctypes.create_string_buffer(64)
    pointers = [ctypes.addressof(memory) // 16 * 16 + 16] * 14
    args = AttentionInt8Args(1, 1, 1, 1, 1, 1, 64, 1.0, *pointers)
    setattr(args, field, value)
    function = emulated.tc_cuda_block_causal_attention_int8
    assert function(ctypes.byref(args), None, ctypes.c_size_t(0), None) == status


def test_scales_that_are_not_there_are_refused(emulated: ctypes.CDLL) -> None:
    memory = ctypes.create_string_buffer(64)
    pointers = [ctypes.addressof(memory) // 16 * 16 + 16] * 14
    function = emulated.tc_cuda_block_causal_attention_int8
    for name in ("past_key_scale", "past_value_scale", "present_key_scale", "present_value_scale"):
        args = AttentionInt8Args(1, 1, 1, 1, 1, 1, 64, 1.0, *pointers)
        setattr(args, name, None)
        assert function(ctypes.byref(args), None, ctypes.c_size_t(0), None) == 1
