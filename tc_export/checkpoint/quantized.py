# SPDX-License-Identifier: Apache-2.0
"""A matrix that is stored in four or eight bits: numbers, and a scale for each group.

The stored form is the one that ONNX's DequantizeLinear reads along axis 0, so that a graph refers
to the file and nothing is packed twice. Of a weight `X` [N, K], which maps K channels to N:

- `X.values` [K, N] are numbers. Those of four bits lie two to a byte, the first in the low half:
  on the disk they are bytes [K, N / 2].
- `X.scales` [K / G, N] are floating point: one for G numbers that are multiplied with neighbouring
  channels. The weight is number times scale.
- `X.input_scale` [1], where it is there: what enters the product is rounded to the format of the
  values, times this scale.
- `X.global_scale` [1], where it is there: values are NVFP4, two of E2M1 to a byte, and scales have
  eight bits, for G = 16; what these stand for is themselves times this scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tc_export.checkpoint.foreign import PackedWeight
from tc_export.checkpoint.four_bits import NVFP4_GROUP, unpack
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from tc_export.model.input_rounding import InputRounding

VALUES, SCALES = ".values", ".scales"
INPUT_SCALE, GLOBAL_SCALE = ".input_scale", ".global_scale"
_BESIDE_VALUES = (SCALES, INPUT_SCALE, GLOBAL_SCALE)
_STORED_AS = {DType.UINT8: DType.INT4, DType.INT8: DType.INT8, DType.FP8: DType.FP8}
OTHER_PRECISION = "float16 does not hold all scales of float32: build with --precision bf16"
_SCALES_IN = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [N, K] as its `values` [K, N] and `scales` [K / G, N] on the disk.

    `input_scale` is there where what enters the product is rounded too, and `global_scale` where
    scales have eight bits.
    """

    name: str
    values: TensorLocation
    scales: TensorLocation
    input_scale: TensorLocation | None = None
    global_scale: TensorLocation | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight: [N, K]."""
        return self.values.shape[::-1]

    @property
    def dtype(self) -> DType:
        """The format of the numbers."""
        return self.values.dtype

    @property
    def group_size(self) -> int:
        """Channels that share a scale."""
        return self.values.shape[0] // self.scales.shape[0]

    def input_rounding(self, scales: DType | None = None) -> InputRounding | None:
        """What becomes of the numbers that enter the product; None where they stay.

        The scale may be rounded to another format before, as those of the weight.

        Raises:
            CheckpointError: the scale is zero or infinite in that format.
        """
        from tc_export.model.input_rounding import InputRounding

        if self.input_scale is None:
            return None
        scale = self.input_scale.as_tensor()
        if scales is not None:
            scale = scale.to(scales.torch)
        if not 0 < float(scale) < math.inf:
            raise CheckpointError(
                f"{self.input_scale.file}: {self.input_scale.name} is {float(scale)} in "
                f"{scales or self.input_scale.dtype}",
                hint=OTHER_PRECISION,
            )
        return InputRounding(self.dtype, float(scale))

    def as_tensor(self, scales: DType | None = None) -> Tensor:
        """The weight [N, K] in float32, its scales rounded to another format before.

        With 16-bit scales no product is rounded. Scales of eight bits and the global one are
        multiplied in float32, and not rounded: whether an engine does that is its own affair.
        """
        import torch

        K, N = self.values.shape
        if self.values.dtype.bits == 4:
            packed = torch.from_numpy(self.values.as_bytes().copy())
            numbers = unpack(packed, self.values.dtype).view(K, N)
        else:
            numbers = self.values.as_tensor()
        factors = self.scales.as_tensor()
        if self.global_scale is not None:
            factors = factors.to(torch.float32) * self.global_scale.as_tensor()
        elif scales is not None:
            factors = factors.to(scales.torch)
        groups = numbers.to(torch.float32).view(-1, self.group_size, N)
        return (groups * factors.to(torch.float32)[:, None]).view(K, N).T.contiguous()


Weight = TensorLocation | QuantizedWeight | PackedWeight


def graph_parts(name: str, weight: Weight) -> Iterator[tuple[str, TensorLocation]]:
    """What a graph refers to on the disk for a weight: itself, or its values and its scales."""
    if isinstance(weight, TensorLocation):
        yield name, weight
    elif isinstance(weight, PackedWeight):
        for part, location in weight.parts.items():
            yield f"{name}.{part}", location
    else:
        yield name + VALUES, weight.values
        yield name + SCALES, weight.scales


def stored_parts(name: str, weight: Weight) -> Iterator[tuple[str, TensorLocation]]:
    """All that lies on the disk for a weight: scales that are one number too."""
    yield from graph_parts(name, weight)
    if isinstance(weight, QuantizedWeight):
        for suffix, scale in (
            (INPUT_SCALE, weight.input_scale),
            (GLOBAL_SCALE, weight.global_scale),
        ):
            if scale is not None:
                yield name + suffix, scale


def join_quantized(on_disk: Mapping[str, TensorLocation], folder: object) -> dict[str, Weight]:
    """Put values and scales together under the name of their weight; the rest stays.

    Raises:
        CheckpointError: one without the other, or shapes and formats that do not fit.
    """
    joined: dict[str, Weight] = {}
    problems: list[str] = []
    for name, location in on_disk.items():
        weight, kind = name.rpartition(".")[0], f".{name.rpartition('.')[2]}"
        if kind in _BESIDE_VALUES and weight + VALUES not in on_disk:
            problems.append(f"  {name}: scales without values")
        elif kind == VALUES and weight + SCALES not in on_disk:
            problems.append(f"  {name}: values without scales")
        elif kind == VALUES:
            found = QuantizedWeight(
                name=weight,
                values=location,
                scales=on_disk[weight + SCALES],
                input_scale=on_disk.get(weight + INPUT_SCALE),
                global_scale=on_disk.get(weight + GLOBAL_SCALE),
            )
            problem = _misfit(found)
            if problem:
                problems.append(f"  {weight}: {problem}")
            else:
                joined[weight] = replace(found, values=_as_numbers(found))
        elif kind not in _BESIDE_VALUES:
            joined[name] = location
    if problems:
        raise CheckpointError(
            f"{folder} has quantised weights that cannot be read:\n" + "\n".join(problems),
            hint="quantise the checkpoint again",
        )
    return joined


def _as_numbers(weight: QuantizedWeight) -> TensorLocation:
    """The values' bytes on the disk as the numbers that they are."""
    values = weight.values
    dtype = DType.NVFP4 if weight.global_scale is not None else _STORED_AS[values.dtype]
    K, columns = values.shape
    return replace(values, dtype=dtype, shape=(K, columns * values.dtype.bits // dtype.bits))


def _misfit(weight: QuantizedWeight) -> str | None:
    """What is wrong with a weight whose values are bytes still."""
    values, scales = weight.values, weight.scales
    if values.dtype not in _STORED_AS:
        return f"values are {values.dtype}, expected {' or '.join(_STORED_AS)}"
    if len(values.shape) != 2 or len(scales.shape) != 2:
        return f"values {values.shape} and scales {scales.shape} are not both matrices"
    K, N = _as_numbers(weight).shape
    groups, columns = scales.shape
    if not groups or K % groups or columns != N:
        return f"scales {scales.shape} do not divide values {(K, N)} into groups"
    if weight.global_scale is not None:
        return _misfit_of_nvfp4(weight, K // groups)
    if scales.dtype not in _SCALES_IN:
        return f"scales are {scales.dtype}, expected {', '.join(_SCALES_IN)}"
    if weight.input_scale is None:
        fp8 = values.dtype is DType.FP8
        return "values are fp8, and the scale of the inputs is missing" if fp8 else None
    if not _is_one_number(weight.input_scale):
        found = f"{weight.input_scale.dtype} {weight.input_scale.shape}"
        return f"the scale of the inputs is {found}, expected one"
    if groups > 1 or values.dtype is DType.UINT8:
        return "inputs are rounded, but an output channel has several scales, or four bits"
    return None


def _misfit_of_nvfp4(weight: QuantizedWeight, group_size: int) -> str | None:
    assert weight.global_scale is not None
    if weight.values.dtype is not DType.UINT8 or weight.scales.dtype is not DType.FP8:
        found = f"values {weight.values.dtype} and scales {weight.scales.dtype}"
        return f"there is a global scale, but {found}, expected uint8 and fp8"
    if group_size != NVFP4_GROUP or weight.input_scale is not None:
        return f"groups of {group_size}, expected {NVFP4_GROUP}, and inputs that are not rounded"
    if not _is_one_number(weight.global_scale):
        found = f"{weight.global_scale.dtype} {weight.global_scale.shape}"
        return f"the global scale is {found}, expected one"
    return None


def _is_one_number(scale: TensorLocation) -> bool:
    return scale.dtype in _SCALES_IN and scale.shape == (1,)
