# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels as the CPU kernels of `torch.ops.tc.*`, by ctypes and without torch's ABI.

The C interface is `plugins/include/tc_kernels.h`. Nothing happens at import: call
`register_native_kernels` with a library from `tc_export.native.find`.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from tc_export.errors import TcExportError, UnsupportedEnvironment, UsageError
from tc_export.ops.block_causal_attention import (
    block_causal_attention,
    block_causal_attention_reference,
)
from tc_export.ops.dual_rope import dual_rope, dual_rope_reference

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Each type that the kernels store, and its `tc_dtype`."""

_OK = 0
_LACKING = (2, 4)  # TC_UNSUPPORTED, TC_OUT_OF_MEMORY
_SIZES = (
    "batch",
    "q_heads",
    "heads",
    "kv_heads",
    "tokens",
    "cache_rows",
    "head_dim",
    "rotary_half",
)


class AttentionArgs(ctypes.Structure):
    """`tc_attention_args`."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("batch", "q_heads", "kv_heads")),
        *((name, ctypes.c_int64) for name in ("tokens", "cache_rows", "head_dim")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "kv_end", "slots")),
        *((name, ctypes.c_void_p) for name in ("past_key", "past_value")),
        *((name, ctypes.c_void_p) for name in ("y", "present_key", "present_value")),
    ]


class DualRopeArgs(ctypes.Structure):
    """`tc_dual_rope_args`."""

    _fields_ = [
        ("dtype", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "tokens")),
        *((name, ctypes.c_int64) for name in ("head_dim", "rotary_half")),
        ("gamma", ctypes.c_float),
        ("attention_factor", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("x", "position_ids", "temporal_ids")),
        ("inv_freq", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
    ]


class NativeKernels:
    """The two kernels of a loaded library, on torch tensors.

    `isa` is a `tc_cpu_isa`; 0 is the best that this processor has.
    """

    def __init__(self, library: ctypes.CDLL, *, isa: int = 0) -> None:
        self._library = library
        self._isa = isa
        self._parallel_for = ctypes.cast(library.tc_cpu_run_on_threads, ctypes.c_void_p)
        library.tc_status_message.restype = ctypes.c_char_p
        for name in ("tc_cpu_block_causal_attention_on", "tc_cpu_dual_rope_on"):
            pointer = ctypes.c_void_p
            getattr(library, name).argtypes = [ctypes.c_int, pointer, pointer, pointer]

    def block_causal_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv_end: Tensor,
        slots: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        scale: float,
        *,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend; see `BLOCK_CAUSAL_ATTENTION`. `in_place` writes into the past cache itself."""
        batch, q_heads, tokens, head_dim = _sizes_of("block_causal_attention", "q", q, 4)
        kv_heads, cache_rows = _sizes_of("block_causal_attention", "past_key", past_key, 4)[1:3]
        new_shape, cache_shape = (batch, kv_heads, tokens, head_dim), past_key.shape
        _expect("block_causal_attention", "k", k, new_shape, q.dtype)
        _expect("block_causal_attention", "v", v, new_shape, q.dtype)
        _expect("block_causal_attention", "kv_end", kv_end, (batch, tokens), torch.int32)
        _expect("block_causal_attention", "slots", slots, (batch, tokens), torch.int64)
        expected_cache = (batch, kv_heads, cache_rows, head_dim)
        _expect("block_causal_attention", "past_key", past_key, expected_cache, q.dtype)
        _expect("block_causal_attention", "past_value", past_value, cache_shape, q.dtype)
        if in_place and not (past_key.is_contiguous() and past_value.is_contiguous()):
            raise UsageError("a cache that is written in place must be contiguous")
        inputs = [x.contiguous() for x in (q, k, v, kv_end, slots, past_key, past_value)]
        y = torch.empty_like(inputs[0])
        present = inputs[5:] if in_place else [torch.empty_like(x) for x in inputs[5:]]
        sizes = (batch, q_heads, kv_heads, tokens, cache_rows, head_dim)
        pointers = (x.data_ptr() for x in (*inputs, y, *present))
        args = AttentionArgs(DTYPES[q.dtype], *sizes, scale, *pointers)
        self._run("tc_cpu_block_causal_attention_on", args)
        return y, present[0], present[1]

    def dual_rope(
        self,
        x: Tensor,
        position_ids: Tensor,
        temporal_ids: Tensor,
        inv_freq: Tensor,
        gamma: float,
        attention_factor: float = 1.0,
    ) -> Tensor:
        """Rotate; see `DUAL_ROPE`."""
        batch, heads, tokens, head_dim = _sizes_of("dual_rope", "x", x, 4)
        (half,) = _sizes_of("dual_rope", "inv_freq", inv_freq, 1)
        _expect("dual_rope", "position_ids", position_ids, (batch, tokens), torch.int64)
        _expect("dual_rope", "temporal_ids", temporal_ids, (batch, tokens), torch.int64)
        _expect("dual_rope", "inv_freq", inv_freq, (half,), torch.float32)
        inputs = [t.contiguous() for t in (x, position_ids, temporal_ids, inv_freq)]
        y = torch.empty_like(inputs[0])
        sizes = (batch, heads, tokens, head_dim, half)
        pointers = (t.data_ptr() for t in (*inputs, y))
        args = DualRopeArgs(DTYPES[x.dtype], *sizes, gamma, attention_factor, *pointers)
        self._run("tc_cpu_dual_rope_on", args)
        return y

    def _run(self, function: str, args: AttentionArgs | DualRopeArgs) -> None:
        threads = ctypes.c_int32(torch.get_num_threads())
        status = getattr(self._library, function)(
            self._isa, ctypes.byref(args), self._parallel_for, ctypes.byref(threads)
        )
        if status == _OK:
            return
        sizes = ", ".join(f"{name} {getattr(args, name)}" for name in _SIZES if hasattr(args, name))
        error = UnsupportedEnvironment if status in _LACKING else UsageError
        raise error(f"{function}: {self._library.tc_status_message(status).decode()} ({sizes})")


def register_native_kernels(library: ctypes.CDLL) -> NativeKernels:
    """Make the library's kernels the CPU kernels of both PyTorch ops, from now on.

    Tensors of a type that the kernels do not store (float64) go to the reference, as before.
    `op.set_kernel_enabled("cpu", False)` puts the reference back.
    """
    kernels = NativeKernels(library)

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv_end: Tensor,
        slots: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        arguments = (q, k, v, kv_end, slots, past_key, past_value, scale)
        if q.dtype in DTYPES:
            return kernels.block_causal_attention(*arguments)
        y, key, value = block_causal_attention_reference(*arguments)
        return y.contiguous(), key.contiguous(), value.contiguous()

    def rotate(
        x: Tensor,
        position_ids: Tensor,
        temporal_ids: Tensor,
        inv_freq: Tensor,
        gamma: float,
        attention_factor: float = 1.0,
    ) -> Tensor:
        arguments = (x, position_ids, temporal_ids, inv_freq, gamma, attention_factor)
        if x.dtype in DTYPES:
            return kernels.dual_rope(*arguments)
        return dual_rope_reference(*arguments).contiguous()

    block_causal_attention.register_kernel("cpu")(attend)
    dual_rope.register_kernel("cpu")(rotate)
    return kernels


def _sizes_of(op: str, name: str, tensor: Tensor, rank: int) -> tuple[int, ...]:
    """The sizes of a tensor that others are measured by."""
    if tensor.dim() != rank or tensor.dtype not in DTYPES:
        raise UsageError(
            f"{op}: {name} is {tensor.dtype} {list(tensor.shape)}, expected {rank} axes of "
            + " or ".join(str(dtype) for dtype in DTYPES)
        )
    _expect(op, name, tensor, tensor.shape, tensor.dtype)
    return tuple(tensor.shape)


def _expect(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Refuse a tensor that the C interface would misread."""
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise UsageError(
            f"{op}: {name} is {tensor.dtype} {list(tensor.shape)}, expected {dtype} {list(shape)}"
        )
    if tensor.device.type != "cpu":
        raise TcExportError(f"{op}: {name} is on {tensor.device}, not in the CPU's memory")
