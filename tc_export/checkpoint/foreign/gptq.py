# SPDX-License-Identifier: Apache-2.0
"""GPTQ as AutoGPTQ, GPTQModel and transformers write it: `quant_method: gptq`.

Numbers from 0 on lie along the input channels, eight of four bits to a word. The first version of
the format has zero points less one. They are made so with one subtraction for a whole word, so one
addition to the word undoes it, carries and all. `g_idx` is the group of each channel; with
`desc_act` groups are made in the order of activations, and neighbours have different ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

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

TABLE = MappingProxyType(
    {
        "qweight": Part("numbers in words [K * bits / 32, N]", (DType.INT32,)),
        "qzeros": Part("zero points in words [G, N * bits / 32]", (DType.INT32,)),
        "scales": Part("scales [G, N]", SCALES),
        "g_idx": Part("the group of each channel [K]", (DType.INT32,), axes=(1,), needed=False),
    }
)
_ONE_IN_EACH = {4: 0x11111111, 8: 0x01010101}


class Gptq(PackingInGroups):
    """`quantization_config` of a GPTQ checkpoint."""

    library: ClassVar[str] = "GPTQ"

    bits: Literal[4, 8]
    sym: bool = True
    desc_act: bool = False
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    pack_dtype: Literal["int32"] = "int32"
    dynamic: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.bits == 8 and not self.sym:
            raise ValueError(
                "eight bits with zero points (sym false): without them numbers take nine bits"
            )
        others = [key for key in self.dynamic or () if not key.startswith("-:")]
        if others:
            raise ValueError(f"dynamic: settings of their own for {', '.join(others)}")
        return self

    @property
    def table(self) -> Mapping[str, Part]:
        """See `Packing.table`."""
        return TABLE

    @property
    def dtype(self) -> DType:
        """See `Packing.dtype`."""
        return DType.INT4 if self.sym and self.bits == 4 else DType.INT8

    @property
    def has_zero_points(self) -> bool:
        """See `Packing.has_zero_points`."""
        return not self.sym

    def shape(self, parts: Parts) -> Shape:
        """See `Packing.shape`."""
        rows, N = parts["qweight"].shape
        K = rows * 32 // self.bits
        if N * self.bits % 32:
            raise Misfit(f"{N} zero points of {self.bits} bits fill no whole words")
        groups = -(-K // (self.channels_a_scale or max(K, 1)))
        check_shape(parts, "scales", (groups, N))
        check_shape(parts, "qzeros", (groups, N * self.bits // 32))
        if "g_idx" in parts:
            check_shape(parts, "g_idx", (K,))
        elif self.desc_act:
            raise Misfit("g_idx is missing, and config.json says desc_act")
        return N, K

    def unpack(self, parts: Parts, shape: Shape) -> Unpacked:
        """See `Packing.unpack`."""
        import torch

        _, K = shape
        stored = parts["qzeros"].as_tensor()
        if self.checkpoint_format == "gptq":
            stored = stored + _ONE_IN_EACH[self.bits]
        zeros = unpack_words(stored, self.bits, axis=1).to(torch.int16)
        if self.sym:
            check_middle(zeros, self.bits)
        if "g_idx" in parts:
            groups = parts["g_idx"].as_tensor().long()
        else:
            groups = in_order(K, self.channels_a_scale or K)
        numbers = unpack_words(parts["qweight"].as_tensor(), self.bits, axis=0)
        return subtract_zeros(numbers, zeros, parts["scales"].as_tensor(), groups)
