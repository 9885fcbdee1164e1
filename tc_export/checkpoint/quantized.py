# SPDX-License-Identifier: Apache-2.0
"""A matrix that is stored in four or eight bits: whole numbers, and a scale for each group.

The stored form is the one that ONNX's DequantizeLinear reads along axis 0, so that a graph refers
to the file and nothing is packed twice. Of a weight `X` [N, K], which maps K channels to N:

- `X.values` [K, N] are whole numbers. Those of four bits lie two to a byte, the first in the low
  half: on the disk they are bytes [K, N / 2].
- `X.scales` [K / G, N] are floating point: one for G numbers that are multiplied with neighbouring
  channels. The weight is number times scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tc_export.checkpoint.foreign import PackedWeight
from tc_export.checkpoint.safetensors_file import TensorLocation
from tc_export.dtypes import DType
from tc_export.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

VALUES, SCALES = ".values", ".scales"
_STORED_AS = {DType.UINT8: DType.INT4, DType.INT8: DType.INT8}
_SCALES_IN = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [N, K] as its `values` [K, N] and `scales` [K / G, N] on the disk."""

    name: str
    values: TensorLocation
    scales: TensorLocation

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight: [N, K]."""
        return self.values.shape[::-1]

    @property
    def dtype(self) -> DType:
        """The format of the whole numbers."""
        return self.values.dtype

    @property
    def group_size(self) -> int:
        """Channels that share a scale."""
        return self.values.shape[0] // self.scales.shape[0]

    def as_tensor(self, scales: DType | None = None) -> Tensor:
        """The weight [N, K] in float32, its scales rounded to another format before.

        With 16-bit scales no product is rounded.
        """
        import torch

        K, N = self.values.shape
        if self.values.dtype is DType.INT4:
            packed = torch.from_numpy(self.values.as_bytes().copy())
            numbers = unpack_int4(packed).view(K, N)
        else:
            numbers = self.values.as_tensor()
        factors = self.scales.as_tensor()
        if scales is not None:
            factors = factors.to(scales.torch)
        groups = numbers.view(-1, self.group_size, N).to(torch.float32)
        return (groups * factors.to(torch.float32)[:, None]).view(K, N).T.contiguous()


Weight = TensorLocation | QuantizedWeight | PackedWeight


def pack_int4(numbers: Tensor) -> Tensor:
    """Bytes of whole numbers from -8 to 7, two to a byte; there must be an even count."""
    import torch

    low, high = numbers.reshape(-1, 2).to(torch.int16).unbind(dim=1)
    return ((low & 15) | ((high & 15) << 4)).to(torch.uint8)


def unpack_int4(packed: Tensor) -> Tensor:
    """The whole numbers of `pack_int4`, as eight-bit ones."""
    import torch

    both = torch.stack((packed & 15, packed >> 4), dim=-1).flatten().to(torch.int8)
    return torch.where(both > 7, both - 16, both)


def stored_parts(name: str, weight: Weight) -> Iterator[tuple[str, TensorLocation]]:
    """What lies on the disk for a weight: itself, its values and its scales, or another's parts."""
    if isinstance(weight, TensorLocation):
        yield name, weight
    elif isinstance(weight, PackedWeight):
        for part, location in weight.parts.items():
            yield f"{name}.{part}", location
    else:
        yield name + VALUES, weight.values
        yield name + SCALES, weight.scales


def join_quantized(on_disk: Mapping[str, TensorLocation], folder: object) -> dict[str, Weight]:
    """Put values and scales together under the name of their weight; the rest stays.

    Raises:
        CheckpointError: one without the other, or shapes and formats that do not fit.
    """
    joined: dict[str, Weight] = {}
    problems: list[str] = []
    for name, location in on_disk.items():
        weight, kind = name.rpartition(".")[0], f".{name.rpartition('.')[2]}"
        if kind == SCALES and weight + VALUES not in on_disk:
            problems.append(f"  {name}: scales without values")
        elif kind == VALUES and weight + SCALES not in on_disk:
            problems.append(f"  {name}: values without scales")
        elif kind == VALUES:
            scales = on_disk[weight + SCALES]
            problem = _misfit(location, scales)
            if problem:
                problems.append(f"  {weight}: {problem}")
            else:
                joined[weight] = QuantizedWeight(weight, _as_numbers(location), scales)
        elif kind != SCALES:
            joined[name] = location
    if problems:
        raise CheckpointError(
            f"{folder} has quantised weights that cannot be read:\n" + "\n".join(problems),
            hint="quantise the checkpoint again",
        )
    return joined


def _as_numbers(values: TensorLocation) -> TensorLocation:
    """The bytes on the disk as the numbers that they are."""
    dtype = _STORED_AS[values.dtype]
    K, columns = values.shape
    return replace(values, dtype=dtype, shape=(K, columns * values.dtype.bits // dtype.bits))


def _misfit(values: TensorLocation, scales: TensorLocation) -> str | None:
    if values.dtype not in _STORED_AS:
        return f"values are {values.dtype}, expected {' or '.join(_STORED_AS)}"
    if scales.dtype not in _SCALES_IN:
        return f"scales are {scales.dtype}, expected {', '.join(_SCALES_IN)}"
    if len(values.shape) != 2 or len(scales.shape) != 2:
        return f"values {values.shape} and scales {scales.shape} are not both matrices"
    K, N = _as_numbers(values).shape
    groups, columns = scales.shape
    if not groups or K % groups or columns != N:
        return f"scales {scales.shape} do not divide values {(K, N)} into groups"
    return None
