# SPDX-License-Identifier: Apache-2.0
"""Number formats: one table of all that the project stores or computes in, and its converters.

Every library has names of its own for the same formats. Each row below states them once; whoever
meets one of those names converts it here. PyTorch and ONNX are imported only by the converters
that hand out their types: a device that answers questions needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from torch import dtype as TorchDType


class DType(StrEnum):
    """A number format. The value is the name that files, flags and messages of ours use."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FP8 = "fp8"  # E4M3, without infinities
    FP8_E5M2 = "fp8_e5m2"
    NVFP4 = "nvfp4"  # E2M1 with scales by block
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    INT4 = "int4"
    UINT8 = "uint8"
    BOOL = "bool"

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return _TABLE[self].bits

    @property
    def is_float(self) -> bool:
        """True for floating-point formats of every width."""
        return self in _FLOATS

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next larger number; of floating-point formats."""
        return float(ml_dtypes.finfo(self.numpy).eps)  # type: ignore[no-untyped-call]

    @property
    def numpy(self) -> np.dtype[Any]:
        """NumPy's dtype; where NumPy lacks the format, that of `ml_dtypes`."""
        found: np.dtype[Any] = np.dtype(_TABLE[self].numpy)
        return found

    @property
    def torch(self) -> TorchDType:
        """PyTorch's dtype.

        Raises:
            ValueError: PyTorch has no such format.
        """
        import torch

        name = _TABLE[self].torch
        if name is None:
            raise ValueError(f"PyTorch has no {self}")
        found: TorchDType = getattr(torch, name)
        return found

    @property
    def onnx(self) -> int:
        """ONNX's number of the element type (`TensorProto.DataType`, `onnx_ir.DataType`)."""
        return _TABLE[self].onnx

    @property
    def onnx_type(self) -> str:
        """ONNX's own spelling of a tensor of this type, as in schemas: `tensor(float16)`."""
        return f"tensor({_ONNX_SPELLINGS.get(self, self)})"

    @classmethod
    def from_numpy(cls, dtype: np.dtype[Any]) -> DType:
        """The format of an array.

        Raises:
            ValueError: it is none of ours.
        """
        return _found("NumPy type", dtype, _BY_NUMPY.get(np.dtype(dtype)))

    @classmethod
    def from_torch(cls, dtype: TorchDType) -> DType:
        """The format of a tensor of PyTorch.

        Raises:
            ValueError: it is none of ours.
        """
        name = str(dtype).removeprefix("torch.")
        return _found("PyTorch type", dtype, _BY_TORCH.get(name))

    @classmethod
    def from_onnx(cls, number: int) -> DType:
        """The format of ONNX's number of an element type.

        Raises:
            ValueError: it is none of ours.
        """
        return _found("ONNX type", number, _BY_ONNX.get(number))

    @classmethod
    def from_onnx_type(cls, spelling: str) -> DType:
        """The format that ONNX Runtime spells as `tensor(float16)`.

        Raises:
            ValueError: it is none of ours.
        """
        return _found("ONNX type", spelling, _BY_ONNX_TYPE.get(spelling))

    @classmethod
    def from_safetensors(cls, code: str) -> DType | None:
        """The format that a safetensors header calls `F16`; None for one that we cannot read."""
        return _BY_SAFETENSORS.get(code)

    @classmethod
    def safetensors_codes(cls) -> tuple[str, ...]:
        """The codes of a safetensors header that can be read."""
        return tuple(_BY_SAFETENSORS)

    @classmethod
    def from_tensorrt(cls, name: str) -> DType:
        """The format of a member of TensorRT's `DataType`, by its name: values differ by version.

        Raises:
            ValueError: it is none of ours.
        """
        return _found("TensorRT type", name, _BY_TENSORRT.get(name))

    @classmethod
    def from_alias(cls, name: str) -> DType | None:
        """The format that people and logs call `fp16` or `half`; None for an unknown name."""
        return _BY_ALIAS.get(name.lower())


@dataclass(frozen=True)
class _Row:
    """One format in the words of each library; None where it has no word."""

    bits: int
    numpy: Any
    torch: str | None
    onnx: int  # TensorProto.DataType, which is fixed by ONNX's file format
    safetensors: str | None = None
    tensorrt: str | None = None
    aliases: tuple[str, ...] = ()


_TABLE = {
    DType.FLOAT64: _Row(64, np.float64, "float64", 11, "F64", None, ("fp64", "double")),
    DType.FLOAT32: _Row(32, np.float32, "float32", 1, "F32", "FLOAT", ("fp32", "float")),
    DType.FLOAT16: _Row(16, np.float16, "float16", 10, "F16", "HALF", ("fp16", "half")),
    DType.BFLOAT16: _Row(16, ml_dtypes.bfloat16, "bfloat16", 16, "BF16", "BF16", ("bf16",)),
    DType.FP8: _Row(8, ml_dtypes.float8_e4m3fn, "float8_e4m3fn", 17, "F8_E4M3", "FP8", ("float8",)),
    DType.FP8_E5M2: _Row(8, ml_dtypes.float8_e5m2, "float8_e5m2", 19, "F8_E5M2"),
    DType.NVFP4: _Row(4, ml_dtypes.float4_e2m1fn, None, 23, None, "FP4", ("fp4", "fp4e2m1")),
    DType.INT64: _Row(64, np.int64, "int64", 7, "I64", "INT64"),
    DType.INT32: _Row(32, np.int32, "int32", 6, "I32", "INT32"),
    DType.INT16: _Row(16, np.int16, "int16", 5, "I16"),
    DType.INT8: _Row(8, np.int8, "int8", 3, "I8", "INT8"),
    DType.INT4: _Row(4, ml_dtypes.int4, None, 22, None, "INT4"),
    DType.UINT8: _Row(8, np.uint8, "uint8", 2, "U8", "UINT8"),
    DType.BOOL: _Row(8, np.bool_, "bool", 9, "BOOL", "BOOL"),
}

_ONNX_SPELLINGS = {
    DType.FLOAT32: "float",
    DType.FLOAT64: "double",
    DType.FP8: "float8e4m3fn",
    DType.FP8_E5M2: "float8e5m2",
    DType.NVFP4: "float4e2m1",
}
_FLOATS = (
    DType.FLOAT64,
    DType.FLOAT32,
    DType.FLOAT16,
    DType.BFLOAT16,
    DType.FP8,
    DType.FP8_E5M2,
    DType.NVFP4,
)

_BY_NUMPY = {np.dtype(row.numpy): dtype for dtype, row in _TABLE.items()}
_BY_TORCH = {row.torch: dtype for dtype, row in _TABLE.items() if row.torch}
_BY_ONNX = {row.onnx: dtype for dtype, row in _TABLE.items()}
_BY_ONNX_TYPE = {dtype.onnx_type: dtype for dtype in DType}
_BY_SAFETENSORS = {row.safetensors: dtype for dtype, row in _TABLE.items() if row.safetensors}
_BY_TENSORRT = {row.tensorrt: dtype for dtype, row in _TABLE.items() if row.tensorrt}
_BY_ALIAS = {name: dtype for dtype, row in _TABLE.items() for name in (dtype, *row.aliases)}

BFLOAT16 = DType.BFLOAT16.numpy


def widen(array: np.ndarray) -> np.ndarray:
    """The array as callers get it: bfloat16 as float32, which holds it exactly."""
    return array.astype(np.float32) if array.dtype == BFLOAT16 else array


def round_to(values: np.ndarray, dtype: DType) -> np.ndarray:
    """The values rounded to a number format, and handed out in float32."""
    rounded: np.ndarray = values.astype(dtype.numpy).astype(np.float32)
    return rounded


def _found(kind: str, name: object, dtype: DType | None) -> DType:
    if dtype is None:
        raise ValueError(f"the {kind} {name} is none of: {', '.join(DType)}")
    return dtype
