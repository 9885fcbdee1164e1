# SPDX-License-Identifier: Apache-2.0
"""Each library's layout, written down once more: number by number, in NumPy, from its packer.

They follow the libraries' published sources, for files of any size and content. What libraries
themselves wrote is in `tests/checkpoint/foreign/written`.

Axes: N output channels, K input channels, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Parts = dict[str, np.ndarray]
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns lies in each place of a word, the lowest first."""


@dataclass(frozen=True)
class Matrix:
    """A quantised matrix: numbers [N, K] from 0 on, zero points and scales [N, G], groups [K]."""

    numbers: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray

    @property
    def weight(self) -> np.ndarray:
        """The matrix [N, K] that they stand for, in float64."""
        numbers = self.numbers.astype(np.int64) - self.zeros.astype(np.int64)[:, self.groups]
        found: np.ndarray = numbers * self.scales.astype(np.float64)[:, self.groups]
        return found


@dataclass(frozen=True)
class Scheme:
    """A way to store matrices: what config.json says of it, and the tensors of one."""

    config: dict[str, Any]
    pack: Callable[[Matrix], Parts]
    bits: int
    group_size: int
    """-1: a scale for a whole row."""
    symmetric: bool


def round_to_nearest(weight: np.ndarray, scheme: Scheme, dtype: Any = np.float16) -> Matrix:
    """Quantise [N, K]: the smallest of a group becomes 0 and the largest 2^bits - 1."""
    N, K = weight.shape
    size = K if scheme.group_size == -1 else scheme.group_size
    most = (1 << scheme.bits) - 1
    groups = weight.astype(np.float64).reshape(N, K // size, size)
    if scheme.symmetric:
        scales = abs(groups).max(axis=-1) * 2 / most
        zeros = np.full(scales.shape, 1 << (scheme.bits - 1))
    else:
        low, high = groups.min(axis=-1).clip(max=0), groups.max(axis=-1).clip(min=0)
        scales = (high - low) / most
        zeros = np.zeros_like(scales)
    scales = scales.clip(min=1e-4).astype(dtype)
    if not scheme.symmetric:
        zeros = np.rint(-low / scales.astype(np.float64)).clip(0, most)
    numbers = np.rint(groups / scales.astype(np.float64)[..., None]) + zeros[..., None]
    return Matrix(
        numbers=numbers.clip(0, most).reshape(N, K).astype(np.uint8),
        zeros=zeros.astype(np.uint8),
        scales=scales,
        groups=np.arange(K) // size,
    )


def words(numbers: np.ndarray, bits: int, places: Iterable[int] | None = None) -> np.ndarray:
    """Pack the last axis into 32-bit words; `places` says which number of a word lies where."""
    per = 32 // bits
    *lead, count = numbers.shape
    split = numbers.reshape(*lead, count // per, per).astype(np.uint64)
    packed = np.zeros(split.shape[:-1], np.uint64)
    for place, which in enumerate(places or range(per)):
        packed |= split[..., which] << np.uint64(bits * place)
    return packed.astype(np.uint32).view(np.int32)


def gptq(bits: int, version: int = 1) -> Callable[[Matrix], Parts]:
    """AutoGPTQ's and GPTQModel's."""

    def pack(matrix: Matrix) -> Parts:
        zeros = words(matrix.zeros.T, bits)
        if version == 1:  # a one less in each, by one subtraction for the whole word
            ones = sum(1 << (bits * place) for place in range(32 // bits))
            zeros = (zeros.view(np.uint32) - np.uint32(ones)).view(np.int32)
        return {
            "qweight": words(matrix.numbers, bits).T,
            "qzeros": zeros,
            "scales": matrix.scales.T,
            "g_idx": matrix.groups.astype(np.int32),
        }

    return pack


def awq(matrix: Matrix) -> Parts:
    """AutoAWQ's `gemm`."""
    return {
        "qweight": words(matrix.numbers.T, 4, AWQ_COLUMNS),
        "qzeros": words(matrix.zeros.T, 4, AWQ_COLUMNS),
        "scales": matrix.scales.T,
    }


def pack_quantized(bits: int, *, symmetric: bool) -> Callable[[Matrix], Parts]:
    """compressed-tensors'."""

    def pack(matrix: Matrix) -> Parts:
        parts = {
            "weight_packed": words(matrix.numbers, bits),
            "weight_shape": np.array(matrix.numbers.shape, np.int64),
            "weight_scale": matrix.scales,
        }
        if not symmetric:
            parts["weight_zero_point"] = words(matrix.zeros.T, bits).T
        return parts

    return pack


def int_quantized(matrix: Matrix) -> Parts:
    """compressed-tensors', of eight bits and symmetric."""
    return {
        "weight": (matrix.numbers.astype(np.int16) - 128).astype(np.int8),
        "weight_scale": matrix.scales,
    }


def _compressed(
    format: str, bits: int, *, symmetric: bool = True, **weights: Any
) -> dict[str, Any]:
    arguments = {"num_bits": bits, "type": "int", "symmetric": symmetric, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": arguments}},
        "ignore": ["lm_head"],
    }


def _gptq(bits: int, size: int, **settings: Any) -> dict[str, Any]:
    values = {"bits": bits, "group_size": size, "sym": True, "desc_act": False}
    return {"quant_method": "gptq", "checkpoint_format": "gptq", **values, **settings}


GROUPS = {"strategy": "group", "group_size": 32}
SCHEMES = {
    "gptq int4": Scheme(_gptq(4, 32), gptq(4), 4, 32, True),
    "gptq int4, zero points": Scheme(_gptq(4, 32, sym=False), gptq(4), 4, 32, False),
    "gptq int4, version 2": Scheme(
        _gptq(4, 32, sym=False, checkpoint_format="gptq_v2"), gptq(4, 2), 4, 32, False
    ),
    "gptq int8, whole rows": Scheme(_gptq(8, -1), gptq(8), 8, -1, True),
    "awq": Scheme(
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 32,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": None,
        },
        awq,
        4,
        32,
        False,
    ),
    "compressed int4": Scheme(
        _compressed("pack-quantized", 4, **GROUPS), pack_quantized(4, symmetric=True), 4, 32, True
    ),
    "compressed int4, zero points": Scheme(
        _compressed("pack-quantized", 4, symmetric=False, **GROUPS),
        pack_quantized(4, symmetric=False),
        4,
        32,
        False,
    ),
    "compressed int8 in words": Scheme(
        _compressed("pack-quantized", 8, strategy="channel"),
        pack_quantized(8, symmetric=True),
        8,
        -1,
        True,
    ),
    "compressed int8": Scheme(
        _compressed("int-quantized", 8, strategy="channel"), int_quantized, 8, -1, True
    ),
}


FP8 = {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}


def fp8(weight: np.ndarray) -> Parts:
    """ModelOpt's FP8 of [N, K] with a scale for each row, as `FP8` says it."""
    scales = (abs(weight).max(axis=1) / 448).clip(min=1e-6).astype(np.float32)
    numbers = (weight / scales[:, None]).astype(ml_dtypes.float8_e4m3fn)
    return {"weight": numbers, "weight_scale": scales}
