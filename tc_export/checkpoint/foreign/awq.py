# SPDX-License-Identifier: Apache-2.0
"""AWQ as AutoAWQ writes it: `quant_method: awq`, the version `gemm`.

Numbers of four bits lie along the output channels, eight to a word, in an order of their own; zero
points alike. A zero point may be any of 0 to 15, so without it a number is from -15 to 15, which
takes eight bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import AliasChoices, Field, field_validator

from tc_export.checkpoint.foreign.packing import SCALES, PackingInGroups, Part, Parts, check_shape
from tc_export.checkpoint.foreign.unpacked import (
    Misfit,
    Unpacked,
    check_middle,
    in_order,
    subtract_zeros,
    unpack_words,
)
from tc_export.dtypes import DType
from tc_export.model.weight_shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor

TABLE = MappingProxyType(
    {
        "qweight": Part("numbers in words [K, N / 8]", (DType.INT32,)),
        "qzeros": Part("zero points in words [G, N / 8]", (DType.INT32,)),
        "scales": Part("scales [G, N]", SCALES),
    }
)
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word the number of each of eight output channels lies."""


class Awq(PackingInGroups):
    """`quantization_config` of an AWQ checkpoint."""

    library: ClassVar[str] = "AWQ"

    bits: Literal[4] = Field(validation_alias=AliasChoices("bits", "w_bit"))
    group_size: int = Field(ge=-1, validation_alias=AliasChoices("group_size", "q_group_size"))
    zero_point: bool = True
    version: Literal["gemm"] = "gemm"

    @field_validator("version", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def table(self) -> Mapping[str, Part]:
        """See `Packing.table`."""
        return TABLE

    @property
    def dtype(self) -> DType:
        """See `Packing.dtype`."""
        return DType.INT8 if self.zero_point else DType.INT4

    @property
    def has_zero_points(self) -> bool:
        """See `Packing.has_zero_points`."""
        return self.zero_point

    def shape(self, parts: Parts) -> Shape:
        """See `Packing.shape`."""
        K, words = parts["qweight"].shape
        size = self.channels_a_scale or max(K, 1)
        if K % size:
            raise Misfit(f"{K} channels are no multiple of groups of {size}")
        check_shape(parts, "qzeros", (K // size, words))
        check_shape(parts, "scales", (K // size, 8 * words))
        return 8 * words, K

    def unpack(self, parts: Parts, shape: Shape) -> Unpacked:
        """See `Packing.unpack`."""
        _, K = shape
        zeros = _columns(parts["qzeros"].as_tensor())
        if not self.zero_point:
            check_middle(zeros, self.bits)
        numbers = _columns(parts["qweight"].as_tensor())
        groups = in_order(K, self.channels_a_scale or K)
        return subtract_zeros(numbers, zeros, parts["scales"].as_tensor(), groups)


def _columns(words: Tensor) -> Tensor:
    """The numbers of words [R, N / 8] as [R, N], each in its place."""
    stored = unpack_words(words, 4, axis=1)
    return stored.view(len(stored), -1, 8)[:, :, list(ORDER)].flatten(1)
