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
from tc_export.ops.block_causal_attention_int8 import (
    block_causal_attention_int8,
    block_causal_attention_int8_reference,
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


class AttentionInt8Args(ctypes.Structure):
    """`tc_attention_int8_args`."""

    _fields_ = [
        *AttentionArgs._fields_[:-3],
        *((name, ctypes.c_void_p) for name in ("past_key_scale", "past_value_scale")),
        *AttentionArgs._fields_[-3:],
        *((name, ctypes.c_void_p) for name in ("present_key_scale", "present_value_scale")),
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
    """The kernels of a loaded library, on torch tensors.

    `isa` is a `tc_cpu_isa`; 0 is the best that this processor has.
    """

    def __init__(self, library: ctypes.CDLL, *, isa: int = 0) -> None:
        self._library = library
        self._isa = isa
        self._parallel_for = ctypes.cast(library.tc_cpu_run_on_threads, ctypes.c_void_p)
        library.tc_status_message.restype = ctypes.c_char_p
        for name in (
            "tc_cpu_block_causal_attention_on",
            "tc_cpu_block_causal_attention_int8_on",
            "tc_cpu_dual_rope_on",
        ):
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
        new = (q, k, v, kv_end, slots)
        sizes = _check_attention("block_causal_attention", new, past_key, past_value, q.dtype)
        past = (past_key, past_value)
        inputs, outputs = _buffers(new, past, in_place=in_place)
        pointers = (x.data_ptr() for x in (*inputs, *outputs))
        args = AttentionArgs(DTYPES[q.dtype], *sizes, scale, *pointers)
        self._run("tc_cpu_block_causal_attention_on", args)
        y, key, value = outputs
        return y, key, value

    def block_causal_attention_int8(
        self,
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
        *,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Attend; see `BLOCK_CAUSAL_ATTENTION_INT8`. `in_place` writes into the past cache."""
        name, new = "block_causal_attention_int8", (q, k, v, kv_end, slots)
        sizes = _check_attention(name, new, past_key, past_value, torch.int8)
        for part, scales in (("key", past_key_scale), ("value", past_value_scale)):
            _expect(name, f"past_{part}_scale", scales, past_key.shape[:3], torch.float32)
        past = (past_key, past_value, past_key_scale, past_value_scale)
        inputs, outputs = _buffers(new, past, in_place=in_place)
        pointers = (x.data_ptr() for x in (*inputs, *outputs))
        args = AttentionInt8Args(DTYPES[q.dtype], *sizes, scale, *pointers)
        self._run("tc_cpu_block_causal_attention_int8_on", args)
        y, key, value, key_scale, value_scale = outputs
        return y, key, value, key_scale, value_scale

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

    def _run(self, function: str, args: AttentionArgs | AttentionInt8Args | DualRopeArgs) -> None:
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
    """Make the library's kernels the CPU kernels of the PyTorch ops, from now on.

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

    def attend_int8(
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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        cache = (past_key, past_value, past_key_scale, past_value_scale)
        arguments = (q, k, v, kv_end, slots, *cache, scale)
        if q.dtype in DTYPES:
            return kernels.block_causal_attention_int8(*arguments)
        return block_causal_attention_int8_reference(*arguments)

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
    block_causal_attention_int8.register_kernel("cpu")(attend_int8)
    dual_rope.register_kernel("cpu")(rotate)
    return kernels


def _check_attention(
    op: str,
    new: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    past_key: Tensor,
    past_value: Tensor,
    stored: torch.dtype,
) -> tuple[int, ...]:
    """The sizes of a call, in the order of the C interface; refuse what does not fit them."""
    q, k, v, kv_end, slots = new
    batch, q_heads, tokens, head_dim = _sizes_of(op, "q", q, 4)
    kv_heads, cache_rows = _sizes_of(op, "past_key", past_key, 4, (stored,))[1:3]
    for name, tensor in (("k", k), ("v", v)):
        _expect(op, name, tensor, (batch, kv_heads, tokens, head_dim), q.dtype)
    _expect(op, "kv_end", kv_end, (batch, tokens), torch.int32)
    _expect(op, "slots", slots, (batch, tokens), torch.int64)
    for name, tensor in (("past_key", past_key), ("past_value", past_value)):
        _expect(op, name, tensor, (batch, kv_heads, cache_rows, head_dim), stored)
    return batch, q_heads, kv_heads, tokens, cache_rows, head_dim


def _buffers(
    new: tuple[Tensor, ...], past: tuple[Tensor, ...], *, in_place: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Contiguous inputs, and the outputs: y, which is like q, and the cache after the call."""
    if in_place and not all(x.is_contiguous() for x in past):
        raise UsageError("a cache that is written in place must be contiguous")
    inputs = [x.contiguous() for x in (*new, *past)]
    before = inputs[len(new) :]
    present = before if in_place else [torch.empty_like(x) for x in before]
    return inputs, [torch.empty_like(inputs[0]), *present]


def _sizes_of(
    op: str,
    name: str,
    tensor: Tensor,
    rank: int,
    dtypes: tuple[torch.dtype, ...] = tuple(DTYPES),
) -> tuple[int, ...]:
    """The sizes of a tensor that others are measured by."""
    if tensor.dim() != rank or tensor.dtype not in dtypes:
        raise UsageError(
            f"{op}: {name} is {tensor.dtype} {list(tensor.shape)}, expected {rank} axes of "
            + " or ".join(map(str, dtypes))
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
